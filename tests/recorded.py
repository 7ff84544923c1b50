"""A gateway with its whole chain, what it records, and the commands that show it: for tests from end to end."""

import contextlib
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import attrs

from fiedler_proxy.testing import RawClient, ScriptedUpstream, start_app
from fiedler_proxy.testing.connection import ReceivedRequest, UpstreamConnection
from fiedler_proxy.testing.upstream import Script, serve_forever
from kgb_gateway.__main__ import main
from kgb_gateway.app import create_app

JSON = ("Content-Type", "application/json")
SSE = (b"Content-Type", b"text/event-stream")


@attrs.frozen
class Address:
    """Where a gateway listens, and the upstream behind it."""

    host: str
    port: int
    upstream: ScriptedUpstream

    def caller(self) -> RawClient:
        return RawClient(self.host, self.port)

    async def post(self, target: str, body: Any, headers: Sequence[tuple[str, str]] = ()) -> tuple[int, bytes]:
        """One request on a connection of its own; status and body of the answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.caller() as client:
            await client.post(target, [JSON, *headers], data)
            answer = await client.read_response()
            return answer.status, answer.body


@attrs.frozen
class Recorded:
    """A data directory."""

    home: Path

    @contextlib.asynccontextmanager
    async def gateway(self, script: Script, **flags: Any) -> AsyncIterator[Address]:
        """A gateway that records here, in front of an upstream that does as ``script`` says."""
        async with ScriptedUpstream(script) as upstream:
            app = create_app(**{"data_dir": str(self.home), "upstream": upstream.url, **flags})
            async with start_app(app) as address:
                yield Address(address.host, address.port, upstream)

    def dewey(self, *words: str, code: int = 0) -> str:
        """What ``kgb dewey WORDS`` prints."""
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            found = main(["dewey", *words, "--data-dir", str(self.home)])
        assert found == code, (words, found, err.getvalue())
        out.seek(0)
        return out.read()

    def told(self, *words: str) -> Any:
        """The same of a command with ``--json``: one document."""
        return json.loads(self.dewey(*words, "--json"))

    def turns(self, session: str) -> list[dict[str, Any]]:
        """The turns of a session, as ``show --json`` tells them."""
        return [json.loads(line) for line in self.dewey("show", session, "--json").splitlines()]


Answer = Callable[[ReceivedRequest, dict[str, Any], UpstreamConnection], Awaitable[None]]


def model(answer: Answer) -> Script:
    """An upstream that reads each request's JSON and answers as ``answer`` does."""

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        body = await request.body()
        await answer(request, json.loads(body) if body else {}, conn)

    return script


def message(text: str, **more: Any) -> bytes:
    """An Anthropic message that was not streamed."""
    usage = {"input_tokens": 10, "output_tokens": 5}
    said = {
        "id": "msg_x",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5",
        "stop_reason": "end_turn",
    }
    return json.dumps({**said, "content": [{"type": "text", "text": text}], "usage": usage, **more}).encode()

"""Whatever a body holds, and however an exchange ends: it is on record as it was, and every command copes."""

import base64
import contextlib
import gzip
import json
from pathlib import Path
from typing import Any

import brotli
import pytest

from fiedler_proxy.testing.connection import ReceivedRequest, UpstreamConnection
from fiedler_proxy.testing.upstream import serve_forever
from kgb_gateway import tail
from kgb_gateway.dewey.packing import zstd
from tests.recorded import JSON, SSE, Recorded, message, model
from tests.spools import events

ASKED = (
    b'{"model": "claude-sonnet-4-5", "max_tokens": 10, "stream": true, "messages": [{"role": "user", "content": "hi"}]}'
)
PLAIN = [(b"Content-Type", b"application/json")]
FORMATS = ("jsonl", "markdown", "html", "har", "claude", "raw")


def asked(text: str) -> bytes:
    """A request whose text is this JSON string, quotes and all."""
    return (
        '{"model": "claude-sonnet-4-5", "max_tokens": 10, "messages": [{"role": "user", "content": [{"type": "text", "text": '
        + text
        + "}]}]}"
    ).encode("utf-8", "surrogatepass")


BODIES = {
    "NUL": asked('"a\\u0000b"'),
    "a NUL as it is": asked('"a\0b"'),
    "a lone surrogate": asked('"x \\ud83d y"'),
    "half of one in UTF-8": asked('"x \ud83d y"'),
    "no UTF-8": asked('"x"').replace(b"x", b"\xff\xfe\xe9"),
    "UTF-16": asked('"x"').decode().encode("utf-16"),
    "a huge number": asked('"x"').replace(b"10,", b"1" + b"0" * 5000 + b","),
    "infinite": asked('"x"').replace(b"10,", b"1e400,"),
    "NaN": asked('"x"').replace(b"10,", b"NaN,"),
    "the same key twice": asked('"x"').replace(b"10,", b'10, "max_tokens": 11, "messages": [],'),
    "deep": b'{"model": "m", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep content": asked('"x"').replace(b'"type"', b'"deep": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b', "type"'),
    "no object": b"[1, 2]",
    "no JSON": b"hello",
    "cut": asked('"x"')[:-5],
    "blanks": b"  \r\n\t" + asked('"x"') + b" \n",
    "a BOM": b"\xef\xbb\xbf" + asked('"x"'),
    "wrong shapes": b'{"model": 5, "messages": {"role": []}, "system": 7, "tools": "x", "stream": "yes"}',
    "wrong blocks": b'{"model": "m", "messages": [null, 1, "x", {"role": 5, "content": [null, {"type": []}]}]}',
    "large": asked(json.dumps("wombat " * 3_000_000)),
}


@pytest.fixture(autouse=True)
def near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(tail, "SHARED_MEMORY", tmp_path / "shm")


@pytest.fixture
def home(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path / "data")


def raw(home: Recorded) -> list[tuple[bytes, bytes]]:
    """Request and response bytes of every exchange, as they passed."""
    lines = [json.loads(line) for line in home.dewey("export", "--format", "raw").splitlines()]
    return [
        (base64.b64decode(line["request"]["body"]), base64.b64decode(line["response"]["body"]))
        for line in lines
        if "request" in line
    ]


async def test_any_body_is_on_record_as_it_was(home: Recorded) -> None:
    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await request.body()
        await conn.send_response(200, PLAIN, message("fine"))

    async with home.gateway(script, **{"links.dewey_tap.tail_size": 64 * 1024 * 1024}) as gate:
        for name, sent in BODIES.items():
            headers = [("x-claude-code-session-id", f"odd-{name.replace(' ', '-')}")]
            assert await gate.post("/v1/messages", sent, headers) == (200, message("fine")), name
    kept = raw(home)
    assert len(kept) == len(BODIES)
    assert [name for name, sent in BODIES.items() if (sent, message("fine")) not in kept] == []
    for words in (("list",), ("search", "wombat"), ("stats",), ("show", "last"), ("show", "odd-deep")):
        home.dewey(*words)
    for form in FORMATS:
        home.dewey("export", "--format", form)
    for row in home.told("list", "--exchanges", "-n", "100"):
        home.dewey("show", row["id"])
        home.dewey("show", row["id"], "--json")
    assert home.dewey("verify").splitlines()[-1] == "sound"


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
async def test_a_coded_reply_is_kept_coded_and_read_decoded(home: Recorded, coding: str) -> None:
    pack = {"gzip": gzip.compress, "br": brotli.compress, "zstd": zstd.compress}[coding]
    packed = pack(b"".join(events("a wombat, packed")))

    async def answer(request: ReceivedRequest, body: Any, conn: UpstreamConnection) -> None:
        await conn.send_response(200, [SSE, (b"Content-Encoding", coding.encode())], packed)

    async with home.gateway(model(answer)) as gate:
        assert await gate.post("/v1/messages", ASKED) == (200, packed)
    assert raw(home) == [(ASKED, packed)]
    assert "a wombat, packed" in home.dewey("show", "last")


class TestEndings:
    """A stream that ends before its end is partial, says how, and has the text so far."""

    @staticmethod
    def check(home: Recorded, outcome: str) -> None:
        (turn,) = [json.loads(line) for line in home.dewey("show", "last", "--json").splitlines()]
        assert (turn["outcome"], turn["partial"], turn["estimated"]) == (outcome, True, True)
        assert "so far" in json.dumps(turn["replies"])
        (row,) = home.told("list")
        assert row["estimated"]
        shown = home.dewey("show", "last")
        assert ("partial" in shown, "estimated" in shown, "so far" in shown) == (True, True, True)
        for form in FORMATS[:4]:
            exported = home.dewey("export", "--format", form)
            assert "partial" in exported or outcome in exported, form

    @staticmethod
    async def half(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send_head(200, [SSE, (b"Transfer-Encoding", b"chunked")])
        await conn.chunk(b"".join(events("so far", cut=True)))

    async def test_the_caller_leaves(self, home: Recorded) -> None:
        async def script(conn: UpstreamConnection) -> None:
            await self.half(conn)
            await conn.closed()

        async with home.gateway(script) as gate, gate.caller() as client:
            await client.post("/v1/messages", [JSON], ASKED)
            await client.read_head()
            await client.read_until(b"so far")
            client.abort()
            await gate.upstream.connections[0].closed()
        self.check(home, "caller_left")

    async def test_the_upstream_breaks(self, home: Recorded) -> None:
        async def script(conn: UpstreamConnection) -> None:
            await self.half(conn)
            conn.abort()

        async with home.gateway(script) as gate, gate.caller() as client:
            await client.post("/v1/messages", [JSON], ASKED)
            await client.read_until_close()
        self.check(home, "upstream_broke")

    async def test_the_upstream_falls_silent(self, home: Recorded) -> None:
        async def script(conn: UpstreamConnection) -> None:
            await self.half(conn)
            await conn.closed()

        async with home.gateway(script, **{"timeouts.idle": 0.2}) as gate, gate.caller() as client:
            await client.post("/v1/messages", [JSON], ASKED)
            await client.read_until_close()
        self.check(home, "timed_out")

    async def test_the_gateway_stops(self, home: Recorded) -> None:
        async def script(conn: UpstreamConnection) -> None:
            await self.half(conn)
            await conn.closed()

        async with contextlib.AsyncExitStack() as caller:
            async with home.gateway(script, **{"timeouts.drain": 0.1}) as gate:
                client = await caller.enter_async_context(gate.caller())
                await client.post("/v1/messages", [JSON], ASKED)
                await client.read_head()
                await client.read_until(b"so far")
        self.check(home, "gateway_stopped")

"""KGB in front of a Fiedler that is a server of its own: the key, what both call the exchange, and who says what went wrong."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from fiedler_proxy.app import create_app as create_fiedler
from fiedler_proxy.app import load as load_fiedler
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.router import ROUTER
from fiedler_proxy.slot_choice import Choice
from fiedler_proxy.testing import (
    RawClient,
    ReceivedResponse,
    ScriptedUpstream,
    UpstreamConnection,
    load_stream,
    respond,
    start_app,
)
from fiedler_proxy.testing.upstream import Script
from kgb_gateway.app import create_app

STREAMS = Path(__file__).resolve().parents[3] / "shared" / "streams"

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@attrs.define(eq=False)
class Hops:
    """Where KGB is, and the provider behind both."""

    host: str
    port: int
    provider: ScriptedUpstream
    key: Path

    async def post(self, headers: Any = ()) -> ReceivedResponse:
        async with RawClient(self.host, self.port) as client:
            await client.post("/v1/messages", headers, b'{"model": "m"}')
            return await client.read_response()


@contextlib.asynccontextmanager
async def hops(tmp_path: Path, script: Script, shown: str = "right") -> AsyncIterator[Hops]:
    key, other = tmp_path / "key", tmp_path / "shown"
    key.write_text("right")
    other.write_text(shown)
    async with ScriptedUpstream(script, ignore_errors=True) as provider:
        flags = {"upstream": provider.url, "data_dir": str(tmp_path / "f")}
        fiedler = create_fiedler(load_fiedler({**flags, "links": {"fiedler_key": {"keys": [f"file:{key}"]}}}))
        async with start_app(fiedler) as far:
            app = create_app(
                upstream="http://127.0.0.1:9",
                data_dir=str(tmp_path / "k"),
                chain=("request_id", "auth", "fiedler"),
                providers={"far": {"like": "fiedler", "url": far.url, "keys": [f"file:{other}"]}},
                slots={"green": [{"upstreams": ["far"], "name": "far"}]},
            )
            app[ROUTER].put(Choice("green"))
            async with start_app(app) as near:
                yield Hops(near.host, near.port, provider, key)


async def test_both_hops_call_the_exchange_the_same_and_the_provider_hears_of_neither(tmp_path: Path) -> None:
    async with hops(tmp_path, respond(200, [("x-provider", "p")], b"far")) as at:
        answer = await at.post(
            [("Authorization", "Bearer caller"), ("x-kgb-caller", "forged"), ("x-claude-code-session-id", "s")]
        )
        assert (answer.status, answer.body) == (200, b"far")
        (request,) = at.provider.requests
        names = {name.lower() for name, _ in request.headers}
        assert not names & {b"x-fiedler-key", b"x-kgb-request-id", b"x-kgb-caller"}
        assert dict(request.headers)[b"Authorization"] == b"Bearer caller"
        assert dict(request.headers)[b"x-claude-code-session-id"] == b"s"


async def test_every_recorded_stream_passes_both_hops_unchanged(tmp_path: Path) -> None:
    if not STREAMS.is_dir():
        pytest.skip(f"recorded streams are not at {STREAMS}")
    paths = sorted(STREAMS.glob("*/*.chunks.txt"))
    assert paths
    headers = [("X-Odd", "\tv  w "), ("request-id", "req_1"), ("x-odd", "again")]

    async def script(connection: UpstreamConnection) -> None:
        while True:
            request = await connection.request()
            await request.body()
            await connection.send_head(
                200, [("Content-Type", "text/event-stream"), *headers, ("Transfer-Encoding", "chunked")]
            )
            for event in load_stream(paths[int(request.target[1:])]):
                await connection.chunk(event)
            await connection.end_chunks()

    async with hops(tmp_path, script) as at, RawClient(at.host, at.port) as client:
        for number, path in enumerate(paths):
            await client.post(f"/{number}", [("X-Api-Key", "k"), ("A", "1"), ("a", "2")], b'{"model": "m"}')
            answer = await client.read_response()
            assert answer.body == b"".join(load_stream(path)), path.name
            kept = [
                pair for pair in answer.headers if pair[0].lower() not in (b"x-kgb-request-id", b"transfer-encoding")
            ]
            assert kept == [
                (b"Content-Type", b"text/event-stream"),
                *((n.encode(), v.strip().encode()) for n, v in headers),
            ]
        sent = at.provider.requests[0]
        assert [name for name, _ in sent.headers if name.lower() in (b"x-api-key", b"a")] == [b"X-Api-Key", b"A", b"a"]


async def test_an_error_says_which_hop(tmp_path: Path) -> None:
    async with hops(tmp_path, respond(200)) as at:
        await at.provider.stop()
        answer = await at.post()
        headers = dict(answer.headers)
        assert (answer.status, headers[b"x-kgb-hop"], headers[b"x-kgb-error"]) == (502, b"fiedler", b"upstream_refused")
        assert json.loads(answer.body)["request_id"] == headers[b"x-kgb-request-id"].decode()


async def test_a_wrong_key_is_refused_and_a_new_one_needs_no_restart(tmp_path: Path) -> None:
    async with hops(tmp_path, respond(200, [], b"far"), shown="wrong") as at:
        answer = await at.post()
        assert (answer.status, dict(answer.headers)[b"x-kgb-error"]) == (401, b"bad_fiedler_key")
        assert b"wrong" not in answer.body
        assert at.provider.requests == []


async def test_fiedler_asks_for_a_key_before_it_is_seen_from_outside() -> None:
    with pytest.raises(SettingsError, match=r"\[links.fiedler_key\] keys"):
        load_fiedler({"host": "0.0.0.0"})
    load_fiedler({"host": "0.0.0.0", "links": {"fiedler_key": {"keys": ["env:FIEDLER_KEY"]}}})


async def started(*words: str, environ: dict[str, str]) -> tuple[asyncio.subprocess.Process, int]:
    """A server as a child process, and its port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *words, env={**os.environ, **environ}, stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stderr is not None
    async for line in process.stderr:
        if b"listening on http://127.0.0.1:" in line:
            return process, int(line.partition(b"listening on http://127.0.0.1:")[2].partition(b",")[0])
    raise AssertionError("it did not start")


@pytest.mark.parametrize("killed", ["kgb", "fiedler"])
async def test_a_hop_that_is_killed_in_mid_stream_never_makes_an_answer_look_whole(killed: str, tmp_path: Path) -> None:
    async def script(connection: UpstreamConnection) -> None:
        await connection.request()
        await connection.send(CHUNKED + b"5\r\nhello\r\n")
        await connection.stall()

    async with ScriptedUpstream(script, ignore_errors=True) as provider:
        (tmp_path / "key").write_text("a-key-of-both")
        base = {"KGB_DATA_DIR": str(tmp_path / "k"), "FIEDLER_DATA_DIR": str(tmp_path / "f")}
        config = tmp_path / "fiedler.toml"
        config.write_text('[links.fiedler_key]\nkeys = ["file:key"]\n')
        fiedler, far = await started(
            "fiedler_proxy", "serve", "--port", "0", "--upstream", provider.url, "--config", str(config), environ=base
        )
        config = tmp_path / "kgb.toml"
        config.write_text(
            f'slot = "green"\nchain = ["request_id", "auth", "fiedler"]\n[providers.fiedler]\nurl = "http://127.0.0.1:{far}"\n'
            'keys = ["file:key"]\n[[slots.green]]\nupstreams = ["fiedler"]\n'
        )
        kgb, near = await started("kgb_gateway", "serve", "--port", "0", "--config", str(config), environ=base)
        processes = {"kgb": kgb, "fiedler": fiedler}
        try:
            async with RawClient("127.0.0.1", near) as client:
                await client.post("/v1/messages", [], b'{"model": "m"}')
                assert (await client.read_head()).status == 200
                await client.read_until(b"hello")
                processes[killed].send_signal(signal.SIGKILL)
                rest, _ = await client.read_until_close()
                assert b"0\r\n\r\n" not in rest
        finally:
            for process in processes.values():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.communicate()

"""Credentials that pass a gateway are nowhere in what it keeps, prints and sends on."""

import contextlib
import logging
import os
import secrets
import sqlite3
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from fiedler_proxy.explain import explained
from fiedler_proxy.testing import RawClient, ScriptedUpstream, start_app
from fiedler_proxy.testing.connection import ReceivedRequest, UpstreamConnection
from fiedler_proxy.testing.upstream import Script
from kgb_gateway import tail
from kgb_gateway.control_client import ask, instances
from kgb_gateway.dewey.archive import Unpacked, archived_in
from kgb_gateway.dewey.spool import Layout
from kgb_gateway.keys_edit import create_key
from tests.controlled import controlled
from tests.recorded import SSE, Recorded, model
from tests.spools import events

HEADERS = (
    "Authorization: Bearer {}", "x-api-key: {}", "x-goog-api-key: {}", "api-key: {}", "Cookie: a=b; session={}", "Proxy-Authorization: Basic {}",
    "x-fiedler-key: {}", "x-amz-security-token: {}", "x-house-secret: {}", "X-Odd: see kgb_0123456789_{}",
)  # fmt: skip
QUERY = ("key", "api_key", "access_token", "X-Amz-Signature", "house_token", "%6bey")
FORMATS = ("jsonl", "markdown", "html", "har", "claude", "raw")
BODY = b'{"model": "claude-sonnet-4-5", "stream": true, "max_tokens": 9, "messages": [{"role": "user", "content": "hello wombat"}]}'


class Canaries:
    """Secrets, each of which exists once."""

    def __init__(self) -> None:
        self.all: dict[str, str] = {}

    def new(self, where: str) -> str:
        self.all[where] = secrets.token_hex(16)
        return self.all[where]

    def found_in(self, data: bytes) -> list[str]:
        return [where for where, canary in self.all.items() if canary.encode() in data]


@pytest.fixture
def canaries() -> Canaries:
    return Canaries()


@pytest.fixture(autouse=True)
def near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(tail, "SHARED_MEMORY", tmp_path / "shm")
    monkeypatch.setenv("HOME", str(tmp_path))


def files(place: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


async def test_no_credential_is_kept_printed_or_sent_on(
    tmp_path: Path, canaries: Canaries, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    home = Recorded(tmp_path / "data")
    log = tmp_path / "access.log"
    query = "&".join(f"{name}={canaries.new(name)}" for name in QUERY)
    headers = [
        (name, value.format(canaries.new(name))) for name, _, value in (line.partition(": ") for line in HEADERS)
    ]

    async def answer(request: ReceivedRequest, body: object, conn: UpstreamConnection) -> None:
        given = [SSE, (b"Set-Cookie", f"a={canaries.new('Set-Cookie')}".encode()), (b"request-id", b"req_1")]
        await conn.send_response(200, given, b"".join(events("hello yourself")), chunked=True)

    home.home.mkdir(mode=0o700)
    _, token = create_key(home.home / "keys.json", "somebody")
    headers.append(("x-kgb-key", token))
    canaries.all["x-kgb-key"] = token.rpartition("_")[2]
    flags = {
        "links.dewey_tap.secret_headers": ("X-House-Secret",),
        "links.dewey_tap.secret_parameters": ("house_token",),
        "links.access_log.path": str(log),
    }
    async with home.gateway(model(answer), **flags) as gate:
        status, said = await gate.post(f"/v1/messages?beta=true&{query}", BODY, headers)
        assert (status, b"message_stop" in said) == (200, True)
        sent = b"".join(name + value for name, value in gate.upstream.requests[0].headers)
        assert canaries.all["x-api-key"].encode() in sent, "what the provider needs, it got"
        async with gate.caller() as client:
            await client.post(f"/nowhere?{query}", [*headers, ("Content-Length", "x")], b"")
            refused = await client.read_response()
        live = files(tmp_path)  # journal, tail and log while they are written
    assert refused.status == 400

    shown = home.dewey("list") + home.dewey("show", "last") + home.dewey("search", "wombat") + home.dewey("stats")
    shown += home.dewey("list", "--exchanges", "--json") + home.dewey("show", "last", "--json") + home.dewey("verify")
    for form in FORMATS:
        exported = home.dewey("export", "--format", form)
        assert "wombat" in exported or form == "raw"
        shown += exported
    assert "wombat" in shown

    layout = Layout(home.home)
    kept = b""
    for name in archived_in(layout.archive):
        kept += os.pread(Unpacked().open(layout.archive, name), 1 << 30, 0)
    everything = {**live, **files(tmp_path), Path("sealed"): kept}
    everything |= {Path("shown"): shown.encode(), Path("logged"): caplog.text.encode(), Path("refused"): refused.body}
    with contextlib.closing(sqlite3.connect(layout.store)) as db:
        everything[Path("database")] = "\n".join(db.iterdump()).encode("utf-8", "replace")
    found = {str(path): canaries.found_in(data) for path, data in everything.items()}
    assert {path: names for path, names in found.items() if names} == {}
    assert any(b"wombat" in data for data in everything.values()), "there is something to be found"
    assert log.stat().st_size > 0


async def test_not_in_a_tunnel_either(tmp_path: Path, canaries: Canaries) -> None:
    """A WebSocket's upgrade, and the subprotocol in which browsers send a key."""
    home = Recorded(tmp_path / "data")
    key = canaries.new("subprotocol")

    async def echo(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=("realtime",))
        await socket.prepare(request)
        await socket.close()
        return socket

    app = web.Application()
    app.router.add_get("/v1/realtime", echo)
    async with start_app(app) as far:
        async with home.gateway(model(_unused), upstream=f"http://{far.host}:{far.port}") as gate:
            async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {canaries.new('bearer')}"}) as session:
                url = f"http://{gate.host}:{gate.port}/v1/realtime?model=m&api_key={canaries.new('query')}"
                protocols = ("realtime", f"openai-insecure-api-key.{key}")
                async with session.ws_connect(url, protocols=protocols) as socket:
                    await socket.receive()
            live = files(tmp_path)
    shown = home.dewey("list", "--exchanges", "--json") + home.dewey("export", "--format", "raw")
    everything = {**live, **files(tmp_path), Path("shown"): shown.encode()}
    assert {str(path): canaries.found_in(data) for path, data in everything.items() if canaries.found_in(data)} == {}
    assert "realtime" in shown


async def _unused(request: ReceivedRequest, body: object, conn: UpstreamConnection) -> None:
    raise AssertionError("the upstream that is not asked")


async def test_a_key_of_the_gateways_own_is_nowhere_but_on_the_wire(
    canaries: Canaries, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Through a failover, a refusal, a shadow, a reload and every answer of the control socket."""
    caplog.set_level(logging.DEBUG)
    place, home = tmp_path / "keys", tmp_path / "home"
    place.mkdir()
    for name in ("central", "second", "fiedler"):
        (place / name).write_text(canaries.new(name))
    got: list[bytes] = []

    async def busy(connection: UpstreamConnection) -> None:
        got.append((await connection.request()).raw_head)
        await connection.send_response(429, [("Retry-After", "1")], b"busy")

    async def good(connection: UpstreamConnection) -> None:
        request = await connection.request()
        got.append(request.raw_head)
        await request.body()
        await connection.send_response(200, [("Content-Type", "application/json")], b"{}")

    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(ScriptedUpstream(busy, ignore_errors=True))
        two = await stack.enter_async_context(ScriptedUpstream(serve_each(good), ignore_errors=True))
        config = tmp_path / "gateway.toml"
        config.write_text(
            f"""
slot = "s"
data_dir = "{home}"
upstream = "{one.url}"
[links.access_log]
path = "{home}/access.log"
[shadow]
slot = "t"
share = 1.0
[providers.one]
url = "{one.url}"
keys = ["file:keys/central"]
[providers.two]
url = "{two.url}"
place = "x-api-key"
keys = ["file:keys/second"]
[providers.far]
like = "fiedler"
url = "{two.url}"
keys = ["file:keys/fiedler"]
[[slots.s]]
upstreams = ["one", "two"]
[[slots.t]]
upstreams = ["far"]
"""
        )
        at = await stack.enter_async_context(controlled({"config": str(config)}))
        async with RawClient(at.host, at.port) as client:
            for _ in range(3):
                await client.post("/v1/messages", [("x-api-key", canaries.new("callers"))], BODY)
                answer = await client.read_response()
                assert answer.status == 200
                assert canaries.found_in(answer.raw_head + answer.body) == []
        assert at.control.shadow is not None
        await at.control.shadow.idle()
        for method, path in (("GET", "/status"), ("GET", "/slots"), ("POST", "/reload")):
            (said,) = await ask(instances(at.control.directory), method, path, {})
            assert said.error == ""
            assert canaries.found_in(repr(said).encode()) == []
        told = explained(at.router, {"slot": "s"})
        assert canaries.found_in(repr((told, at.router, at.router.lives)).encode()) == []
    assert {where for raw in got for where in canaries.found_in(raw)} >= {"central", "second", "fiedler"}
    kept = {path: data for path, data in files(tmp_path).items() if place not in path.parents}
    assert any(b"claude-sonnet" in data for data in kept.values())
    assert {path: found for path, data in kept.items() if (found := canaries.found_in(data))} == {}
    assert canaries.found_in((caplog.text + "".join(capfd.readouterr())).encode()) == []


def serve_each(script: Script) -> Script:
    """``script`` for each request of a connection."""

    async def forever(connection: UpstreamConnection) -> None:
        while True:
            await script(connection)

    return forever

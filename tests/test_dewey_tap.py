"""dewey_tap: what passed is in the journal, byte for byte, and nothing secret is."""

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from aiohttp import web

from fiedler_proxy.errors import ExchangeError, SettingsError
from fiedler_proxy.exchange import Exchange
from fiedler_proxy.framing import LAST_CHUNK, chunk
from fiedler_proxy.lifecycle import EXCHANGE, Gateway, create_application
from fiedler_proxy.relay import Relay
from fiedler_proxy.server import Handler
from fiedler_proxy.testing import RawClient, ScriptedUpstream, check_middleware, start_app
from fiedler_proxy.testing.upstream import UpstreamConnection
from fiedler_proxy.upstream import parse_upstream
from kgb_gateway import tail as module
from kgb_gateway.disk import Disk
from kgb_gateway.journal import gap_of
from kgb_gateway.middlewares.dewey_tap import DeweyTap, Record, key_of
from kgb_gateway.record import STARTED, Frame, Kind
from kgb_gateway.segments import SegmentReader, segments_in
from kgb_gateway.tail import LEAST, tail_path

CANARY = "canary-5f3a"
SECRETS = [("Authorization", f"Bearer {CANARY}"), ("x-api-key", CANARY), ("Cookie", f"s={CANARY}")]


@pytest.fixture(autouse=True)
def own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tails of tests are where the tests are."""
    monkeypatch.setattr(module, "SHARED_MEMORY", tmp_path)


async def answer(conn: UpstreamConnection) -> None:
    request = await conn.request()
    body = await request.body()
    if b"broken" in request.target:
        await conn.send_head(200, [(b"Content-Length", b"100")])
        await conn.send(b"half")
        conn.abort()
        return
    headers = [(b"request-id", b"req_1"), (b"Set-Cookie", f"s={CANARY}".encode())]
    await conn.send_response(200, headers, b"echo " + body)


@attrs.frozen
class Named:
    """Plays the links that find out who asks, and refuse."""

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        exchange = request[EXCHANGE]
        exchange.caller, exchange.route = "alice", "messages"
        if "refuse" in exchange.path:
            raise ExchangeError("no_such_thing", "No.", status=404)
        return await handler(request)


@contextlib.asynccontextmanager
async def serving(link: DeweyTap) -> AsyncIterator[RawClient]:
    async with ScriptedUpstream(answer) as upstream:
        gateway = Gateway(parse_upstream(upstream.url, "anthropic"))
        app = create_application(gateway, [link, Named()], Relay(gateway))
        async with start_app(app) as address, RawClient(address.host, address.port) as client:
            yield client


def tap(home: Path, **more: Any) -> DeweyTap:
    return DeweyTap(**{"data_dir": str(home), "tail_size": LEAST, "watermark": 0, "sync_seconds": 0.001, **more})


def frames(home: Path) -> list[Frame]:
    found: list[Frame] = []
    for name in segments_in(home / "spool"):
        with SegmentReader(home / "spool" / str(name)) as reader:
            found += [frame for frame in reader.frames(finished=True) if frame.payload != STARTED]
            assert reader.findings == []
    return found


def body(found: list[Frame], kind: Kind) -> bytes:
    return b"".join(frame.payload for frame in found if frame.kind == kind)


def said(found: list[Frame], kind: Kind) -> dict[str, Any]:
    (frame,) = [frame for frame in found if frame.kind == kind]
    line, _, headers = frame.payload.partition(b"\n")
    document: dict[str, Any] = json.loads(line)
    return {**document, "headers": headers.split(b"\r\n")}


async def test_an_exchange_is_on_record_whole_and_without_its_credentials(tmp_path: Path) -> None:
    async with serving(tap(tmp_path)) as client:
        await client.post(f"/v1/messages?beta=true&key={CANARY}", SECRETS, b'{"a": "\xff"}')
        response = await client.read_response()
    found = frames(tmp_path)
    kinds = [Kind.REQUEST_HEAD, Kind.REQUEST_BYTES, Kind.RESPONSE_HEAD, Kind.RESPONSE_BYTES, Kind.END]
    assert [frame.kind for frame in found] == kinds
    assert body(found, Kind.REQUEST_BYTES) == b'{"a": "\xff"}'
    assert body(found, Kind.RESPONSE_BYTES) == response.body
    request, head, end = (said(found, kind) for kind in (Kind.REQUEST_HEAD, Kind.RESPONSE_HEAD, Kind.END))
    assert (request["method"], request["target"]) == ("POST", "/v1/messages?beta=true&key=[REDACTED]")
    assert (request["caller"], request["route"], request["upstream"]) == ("alice", "messages", "anthropic")
    assert request["fingerprints"]["authorization"] == request["fingerprints"]["x-api-key"]
    assert head["status"] == 200
    assert b"request-id: req_1" in head["headers"]
    assert b"Set-Cookie: [REDACTED]" in head["headers"]
    assert b"Authorization: [REDACTED]" in request["headers"]
    assert (end["outcome"], end["request_size"], end["response_size"]) == ("completed", 10, len(response.body))
    assert {frame.exchange for frame in found} == {key_of(request["id"])}
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes(), path


async def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    async with serving(tap(tmp_path)) as client:
        await client.get("/")
        await client.read_response()
        for path in tmp_path.rglob("*"):
            assert path.stat().st_mode & 0o077 == 0, path


async def test_a_refusal_is_on_record_without_its_body(tmp_path: Path) -> None:
    async with serving(tap(tmp_path)) as client:
        await client.post("/refuse", SECRETS, b"never read")
        assert (await client.read_response()).status == 404
    found = frames(tmp_path)
    assert [frame.kind for frame in found] == [Kind.REQUEST_HEAD, Kind.RESPONSE_HEAD, Kind.END]
    assert said(found, Kind.END)["error"] == "no_such_thing"
    assert said(found, Kind.END)["outcome"] == "refused"


async def test_a_stream_that_broke_is_on_record_as_far_as_it_came(tmp_path: Path) -> None:
    async with serving(tap(tmp_path)) as client:
        await client.get("/broken")
        received, _ = await client.read_until_close()
    found = frames(tmp_path)
    assert received.endswith(b"half")
    assert body(found, Kind.RESPONSE_BYTES) == b"half"
    assert said(found, Kind.END)["outcome"] == "upstream_broke"


@pytest.mark.parametrize(
    ("more", "recorded"),
    [
        ({"record": Record.OFF}, "nothing"),
        ({"record": Record.METADATA}, "heads"),
        ({"callers": {"alice": "metadata"}}, "heads"),
        ({"routes": {"messages": "off"}}, "nothing"),
        ({"record": Record.OFF, "callers": {"alice": "full"}}, "all"),
        ({"callers": {"alice": "full"}, "routes": {"messages": "metadata"}}, "heads"),
        ({"callers": {"bob": "off"}}, "all"),
    ],
)
async def test_how_much_is_recorded_is_said_by_caller_and_route(
    tmp_path: Path, more: dict[str, Any], recorded: str
) -> None:
    async with serving(tap(tmp_path, **more)) as client:
        await client.post("/v1/messages", [], b"hello")
        await client.read_response()
    kinds = {frame.kind for frame in frames(tmp_path)}
    assert (Kind.END in kinds) == (recorded != "nothing")
    assert (Kind.REQUEST_BYTES in kinds) == (Kind.RESPONSE_BYTES in kinds) == (recorded == "all")


async def test_a_body_that_does_not_fit_is_relayed_whole_and_is_an_exact_gap(tmp_path: Path) -> None:
    link = tap(tmp_path, watermark=2**62)  # the disk counts as full: nothing is drained
    sent = os.urandom(3 * LEAST)
    async with serving(link) as client:
        await client.post("/", [], sent)
        assert (await client.read_response()).body == b"echo " + sent
        journal = link.journal
        assert journal is not None
        assert journal.counters.gap_bytes > len(sent)
        assert journal.counters.unsaid_bytes == 0
    async with serving(tap(tmp_path)):
        pass  # the next start takes what is left, gaps too
    found = frames(tmp_path)
    recorded = body(found, Kind.REQUEST_BYTES)
    gaps = {gap_of(frame).kind: gap_of(frame) for frame in found if frame.kind == Kind.GAP}
    assert sent.startswith(recorded)
    assert (gaps[Kind.REQUEST_BYTES].offset, gaps[Kind.REQUEST_BYTES].length) == (
        len(recorded),
        len(sent) - len(recorded),
    )


async def test_fail_closed_refuses_while_nothing_can_be_recorded(tmp_path: Path) -> None:
    link = tap(tmp_path, watermark=2**62, fail_closed=True)
    async with serving(link) as client:
        journal = link.journal
        while journal is not None and not journal.failing:
            await asyncio.sleep(0.001)
        await client.get("/")
        response = await client.read_response()
        assert (response.status, response.header("x-kgb-error")) == (503, b"not_recording")


async def test_two_gateways_cannot_have_one_name(tmp_path: Path) -> None:
    async with serving(tap(tmp_path)):
        with pytest.raises(SettingsError, match="give each an instance name of its own"):
            async with serving(tap(tmp_path)):
                pass
        async with serving(tap(tmp_path, instance="b")) as client:
            await client.get("/")
            await client.read_response()
    assert [name.instance for name in segments_in(tmp_path / "spool")] == ["b", "default"]


async def test_it_keeps_the_contract_of_a_middleware(tmp_path: Path) -> None:
    assert await check_middleware(tap(tmp_path))
    assert DeweyTap.outer


def test_settings_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="tail_size is 5"):
        tap(tmp_path, tail_size=5)


def test_an_id_of_another_form_has_a_key_too() -> None:
    given = "01a207d7-f58a-7687-a3dd-98fbe4d729ab"
    assert key_of(given).hex() == given.replace("-", "")
    assert len(key_of("given by a link")) == len(key_of("\ud800")) == 16
    assert key_of("x" * 32) != key_of("y" * 32)


def test_a_tail_is_named_after_its_data_directory_and_instance(tmp_path: Path) -> None:
    names = {tail_path(tmp_path / home, instance).name for home in "xy" for instance in "ab"}
    assert len(names) == 4


def test_modes_are_checked_when_they_are_read() -> None:
    exchange = Exchange("GET", "/", caller="a", route="r")
    assert DeweyTap(callers={"a": "off"}).record_of(exchange) is Record.OFF
    assert DeweyTap().record_of(exchange) is Record.FULL


# strict: nothing goes upstream that is not on disk.


class Upstream:
    """Counts what came, and looks at the disk when it does."""

    def __init__(self, spool: Path) -> None:
        self.spool = spool
        self.seen: list[bytes] = []
        self.on_disk: list[bool] = []

    async def __call__(self, conn: UpstreamConnection) -> None:
        request = await conn.request()
        body = await request.body()
        self.seen.append(body)
        # What the page cache of a segment holds was synced before: the test's disk says so.
        found = b"".join(path.read_bytes() for path in self.spool.glob("*.seg"))
        self.on_disk.append(body in found)
        await conn.send_response(200, [], b"ok")


@contextlib.asynccontextmanager
async def strictly(link: DeweyTap) -> AsyncIterator[tuple[RawClient, Upstream]]:
    there = Upstream(Path(link.data_dir) / "spool")
    async with ScriptedUpstream(there) as upstream:
        gateway = Gateway(parse_upstream(upstream.url, "anthropic"))
        app = create_application(gateway, [link, Named()], Relay(gateway))
        async with start_app(app) as address, RawClient(address.host, address.port) as client:
            yield client, there


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [0, 5, 200_000])
async def test_a_strict_gateway_forwards_what_is_on_disk(tmp_path: Path, size: int, chunked: bool) -> None:
    body = os.urandom(size)
    async with strictly(tap(tmp_path, strict=True, sync_seconds=60.0)) as (client, upstream):
        for _ in range(2):
            if chunked:
                await client.request("POST", "/", [("Transfer-Encoding", "chunked")])
                for start in range(0, size, 1000):
                    await client.send(chunk(body[start : start + 1000]))
                await client.send(LAST_CHUNK)
            else:
                await client.post("/", [], body)
            response = await client.read_response()
            assert (response.status, response.body) == (200, b"ok")
    assert upstream.seen == [body, body]
    assert upstream.on_disk == [True, True]
    found = [frame for frame in frames(tmp_path) if frame.kind == Kind.REQUEST_BYTES]
    assert b"".join(frame.payload for frame in found) == body * 2, "told once"


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_a_strict_gateway_refuses_what_the_disk_does_not_take(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on = threading.Event()

    def sync(self: Disk, fd: int) -> None:
        if how == "fails":
            raise OSError(5, "Input/output error")
        going_on.wait()

    monkeypatch.setattr(Disk, "sync", sync)
    async with strictly(tap(tmp_path, strict=True, strict_seconds=0.05)) as (client, upstream):
        await client.post("/", [], b"body")
        response = await client.read_response()
        assert (response.status, response.header("x-kgb-error")) == (503, b"not_durable")
        assert upstream.seen == []
        going_on.set()


async def test_a_strict_gateway_holds_no_more_than_it_says(tmp_path: Path) -> None:
    async with strictly(tap(tmp_path, strict=True, strict_body=1000)) as (client, upstream):
        await client.post("/", [], bytes(1001))
        assert (await client.read_response()).status == 413
        assert upstream.seen == []


async def test_many_strict_requests_share_their_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = 0
    real = Disk.sync

    def sync(self: Disk, fd: int) -> None:
        nonlocal syncs
        syncs += 1
        real(self, fd)

    monkeypatch.setattr(Disk, "sync", sync)
    there = Upstream(tmp_path / "spool")
    async with ScriptedUpstream(there) as upstream:
        gateway = Gateway(parse_upstream(upstream.url, "anthropic"))
        app = create_application(gateway, [tap(tmp_path, strict=True, sync_seconds=60.0), Named()], Relay(gateway))
        async with start_app(app) as address:

            async def one(number: int) -> int:
                async with RawClient(address.host, address.port) as client:
                    await client.post("/", [], b"body %d" % number)
                    return (await client.read_response()).status

            assert await asyncio.gather(*map(one, range(100))) == [200] * 100
    assert there.on_disk == [True] * 100
    assert syncs < 100


async def test_what_is_not_recorded_waits_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    going_on = threading.Event()
    monkeypatch.setattr(Disk, "sync", lambda *_: going_on.wait())
    async with strictly(tap(tmp_path, strict=True, strict_seconds=0.05, record=Record.OFF)) as (client, upstream):
        await client.post("/", [], b"body")
        assert (await client.read_response()).status == 200
        assert upstream.seen == [b"body"]
        going_on.set()

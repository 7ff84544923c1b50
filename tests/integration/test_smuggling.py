"""Requests that two parties could read differently: each gets 400 (or 501), ends its connection and reaches nobody.

The gateway would otherwise be the party that reads them one way while the upstream reads them the other (RFC 9112
sections 2.2, 5, 6 and 11.2). Every shape is followed by a request that would be the smuggled one.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import attrs
import pytest

from fiedler_proxy import server
from fiedler_proxy.testing import (
    BrokenRequest,
    PeerLeft,
    RawClient,
    ReceivedRequest,
    ReceivedResponse,
    ScriptedUpstream,
    UpstreamConnection,
    chunk_bytes,
    serve_forever,
)

from .helpers import Serving, relaying

BOTH_LOOPS = True

HOST = b"Host: 127.0.0.1\r\n"
CANARY = b"sk-canary-0123456789"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n"
CHUNKED = b"Transfer-Encoding: chunked"
BODY = b"3\r\nabc\r\n0\r\n\r\n"
BIG = b"a" * 70_000


def post(*lines: bytes, body: bytes = b"") -> bytes:
    """A POST with ``lines`` as its headers (beside Host and a credential), ``body`` and the smuggled request."""
    fields = b"".join(line + b"\r\n" for line in (b"Authorization: Bearer " + CANARY, *lines))
    return b"POST /v1/messages?key=" + CANARY + b" HTTP/1.1\r\n" + HOST + fields + b"\r\n" + body + SMUGGLED


def start(line: bytes) -> bytes:
    """A bodiless request with this start line, and the smuggled request."""
    return line + b"\r\n" + HOST + b"\r\n" + SMUGGLED


def hosted(*lines: bytes) -> bytes:
    """A request whose Host headers are ``lines`` alone."""
    return b"GET / HTTP/1.1\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + SMUGGLED


LENGTHS = {
    "both, length first": post(b"Content-Length: 13", CHUNKED, body=BODY),
    "both, coding first": post(CHUNKED, b"Content-Length: 13", body=BODY),
    "both, length 0": post(b"Content-Length: 0", CHUNKED, body=BODY),
    "equal lengths": post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"),
    "differing lengths": post(b"Content-Length: 3", b"Content-Length: 4", body=b"abc"),
    "list of equal lengths": post(b"Content-Length: 3, 3", body=b"abc"),
    "plus": post(b"Content-Length: +3", body=b"abc"),
    "minus": post(b"Content-Length: -3", body=b"abc"),
    "hexadecimal": post(b"Content-Length: 0x3", body=b"abc"),
    "underscore": post(b"Content-Length: 1_0", body=b"abcdefghij"),
    "inner space": post(b"Content-Length: 3 4", body=b"abc"),
    "empty length": post(b"Content-Length:"),
    "blank length": post(b"Content-Length: \t "),
    "fraction": post(b"Content-Length: 3.0", body=b"abc"),
    "exponent": post(b"Content-Length: 3e0", body=b"abc"),
    "quoted": post(b'Content-Length: "3"', body=b"abc"),
    "parameter": post(b"Content-Length: 3;", body=b"abc"),
    "another script's digit": post("Content-Length: \u0663".encode(), body=b"abc"),
    "vertical tab": post(b"Content-Length: \x0b3", body=b"abc"),
    "over 64 bits": post(b"Content-Length: 18446744073709551619", body=b"abc"),
    "absurd": post(b"Content-Length: " + b"9" * 60, body=b"abc"),
}

CODINGS = {
    "not chunked at all": post(b"Transfer-Encoding: gzip", body=b"abc"),
    "chunked is not last": post(b"Transfer-Encoding: chunked, gzip", body=BODY),
    "chunked twice": post(b"Transfer-Encoding: chunked, chunked", body=BODY),
    "chunked in two lines": post(CHUNKED, CHUNKED, body=BODY),
    "identity": post(b"Transfer-Encoding: identity", body=BODY),
    "identity with a length": post(b"Transfer-Encoding: identity", b"Content-Length: 3", body=b"abc"),
    "identity, then chunked": post(b"Transfer-Encoding: identity", CHUNKED, body=BODY),
    "chunked, then identity": post(CHUNKED, b"Transfer-Encoding: identity", body=BODY),
    "xchunked": post(b"Transfer-Encoding: xchunked", body=BODY),
    "chunkedx": post(b"Transfer-Encoding: chunkedx", body=BODY),
    "parameter of chunked": post(b"Transfer-Encoding: chunked;q=1", body=BODY),
    "quoted chunked": post(b'Transfer-Encoding: "chunked"', body=BODY),
    "vertical tab before chunked": post(b"Transfer-Encoding: \x0bchunked", body=BODY),
    "empty coding": post(b"Transfer-Encoding:", body=BODY),
    "empty coding with a length": post(b"Transfer-Encoding:", b"Content-Length: 3", body=b"abc"),
    "nothing after the comma": post(b"Transfer-Encoding: chunked,", body=BODY),
    "HTTP/1.0": start(b"POST / HTTP/1.0").replace(b"\r\n\r\n", b"\r\n" + CHUNKED + b"\r\n\r\n" + BODY, 1),
}

UNKNOWN_CODINGS = {
    "gzip, chunked": post(b"Transfer-Encoding: gzip, chunked", body=BODY),
    "identity, chunked": post(b"Transfer-Encoding: identity, chunked", body=BODY),
    "xchunked, chunked": post(b"Transfer-Encoding: xchunked, chunked", body=BODY),
}

BAD_CHUNKS = {
    "no hexadecimal": b"x\r\nabc\r\n0\r\n\r\n",
    "prefixed size": b"0x3\r\nabc\r\n0\r\n\r\n",
    "plus size": b"+3\r\nabc\r\n0\r\n\r\n",
    "minus size": b"-3\r\nabc\r\n0\r\n\r\n",
    "space before the size": b" 3\r\nabc\r\n0\r\n\r\n",
    "underscore in the size": b"1_0\r\naaaaaaaaaaaaaaaa\r\n0\r\n\r\n",
    "no size": b"\r\nabc\r\n0\r\n\r\n",
    "size over 64 bits": b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    "size too small": b"2\r\nabc\r\n0\r\n\r\n",
    "size too large": b"4\r\nabc\r\n0\r\n\r\n",
    "LF everywhere": b"3\nabc\n0\n\n",
    "LF after the size": b"3\nabc\r\n0\r\n\r\n",
    "LF after the data": b"3\r\nabc\n0\r\n\r\n",
    "CR after the size": b"3\rabc\r\n0\r\n\r\n",
    "LF after the last size": b"3\r\nabc\r\n0\n\r\n",
    "LF at the end": b"3\r\nabc\r\n0\r\n\n",
    "LF in an extension": b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "CR in an extension": b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "NUL in an extension": b"3;a\0b\r\nabc\r\n0\r\n\r\n",
    "trailer without colon": b"3\r\nabc\r\n0\r\ntrailer\r\n\r\n",
    "trailer with space before its colon": b"3\r\nabc\r\n0\r\nA : b\r\n\r\n",
    "folded trailer": b"3\r\nabc\r\n0\r\nA: b\r\n c\r\n\r\n",
    "LF in the trailers": b"3\r\nabc\r\n0\r\nA: b\n\r\n",
    "NUL in the trailers": b"3\r\nabc\r\n0\r\nA: b\0\r\n\r\n",
    "length in the trailers": b"3\r\nabc\r\n0\r\nContent-Length: 3\r\n\r\n",
}

LINES = {
    "CR in a value": post(b"X: a\rb"),
    "CR as end of line": b"GET / HTTP/1.1\r" + HOST + b"\r\n" + SMUGGLED,
    "CR CR LF": post(b"X: a\r"),
    "LF after the start line": b"GET / HTTP/1.1\n" + HOST + b"\r\n" + SMUGGLED,
    "LF alone": b"GET / HTTP/1.1\nHost: 127.0.0.1\n\n" + SMUGGLED,
    "LF between headers": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\nX: y\r\n\r\n" + SMUGGLED,
    "LF at the end of the head": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\n" + SMUGGLED,
    "NUL in a value": post(b"X: a\0b"),
    "NUL in a name": post(b"X\0: a"),
    "NUL in the method": start(b"GE\0T / HTTP/1.1"),
    "NUL before the request": b"\0" + start(b"GET / HTTP/1.1"),
    "control character in a value": post(b"X: a\x01b"),
    "DEL in a value": post(b"X: a\x7fb"),
    "folded by a space": post(b"X: a", b" b"),
    "folded by a tab": post(b"X: a", b"\tb"),
    "folded start": b"GET / HTTP/1.1\r\n X: y\r\n" + HOST + b"\r\n" + SMUGGLED,
    "folded length": post(b"Content-Length:\r\n 3", body=b"abc"),
    "folded coding": post(b"Transfer-Encoding:\r\n chunked", body=BODY),
    "space before the colon": post(b"X : y"),
    "tab before the colon": post(b"X\t: y"),
    "space before the colon of a length": post(b"Content-Length : 3", body=b"abc"),
    "space before the colon of a coding": post(b"Transfer-Encoding : chunked", body=BODY),
    "no colon": post(b"X"),
    "no name": post(b": y"),
    "delimiter in a name": post(b"X(: y"),
    "byte over 0x7f in a name": post(b"X\xe9: y"),
}

HOSTS = {
    "missing": hosted(),
    "double": hosted(b"Host: 127.0.0.1", b"Host: 127.0.0.1"),
    "double, differing": hosted(b"Host: 127.0.0.1", b"host: evil.example"),
    "empty": hosted(b"Host:"),
    "list": hosted(b"Host: 127.0.0.1, evil.example"),
    "user information": hosted(b"Host: user@127.0.0.1"),
    "path": hosted(b"Host: 127.0.0.1/x"),
    "space": hosted(b"Host: 127.0.0.1 evil.example"),
    "port of letters": hosted(b"Host: 127.0.0.1:x"),
}

START_LINES = {
    "version 1.2": start(b"GET / HTTP/1.2"),
    "version 3.0": start(b"GET / HTTP/3.0"),
    "version 1.10": start(b"GET / HTTP/1.10"),
    "version without dot": start(b"GET / HTTP/11"),
    "version cut off": start(b"GET / HTTP/1."),
    "version in lower case": start(b"GET / http/1.1"),
    "another protocol": start(b"GET / HTTQ/1.1"),
    "space after the version": start(b"GET / HTTP/1.1 "),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
    "noise": b"\xff\xfe\xfd\r\n\r\n" + SMUGGLED,
    "method with a delimiter": start(b"G(T / HTTP/1.1"),
    "tab after the method": start(b"GET\t/ HTTP/1.1"),
    "space before the method": start(b" GET / HTTP/1.1"),
    "no target": start(b"GET HTTP/1.1"),
    "space in the target": start(b"GET /a b HTTP/1.1"),
    "NUL in the target": start(b"GET /\0 HTTP/1.1"),
    "tab in the target": start(b"GET /\ta HTTP/1.1"),
    "control character in the target": start(b"GET /\x01 HTTP/1.1"),
    "DEL in the target": start(b"GET /\x7f HTTP/1.1"),
    "fragment": start(b"GET /a#b HTTP/1.1"),
    "fragment after a query": start(b"GET /a?b#c HTTP/1.1"),
    "UTF-8 in the target": start("GET /é HTTP/1.1".encode()),
    "byte over 0x7f in the query": start(b"GET /?\xff HTTP/1.1"),
    "relative target": start(b"GET a HTTP/1.1"),
    "query alone": start(b"GET ?a HTTP/1.1"),
    "asterisk for GET": start(b"GET * HTTP/1.1"),
    "asterisk and more": start(b"OPTIONS *x HTTP/1.1"),
    "backslashes": start(b"GET \\\\evil.example\\x HTTP/1.1"),
    "authority-form": start(b"GET 127.0.0.1:80 HTTP/1.1"),
    "another scheme": start(b"GET ftp://127.0.0.1/ HTTP/1.1"),
    "file": start(b"GET file:///etc/passwd HTTP/1.1"),
    "absolute-form without slashes": start(b"GET http:/a HTTP/1.1"),
    "absolute-form without host": start(b"GET http:///a HTTP/1.1"),
    "absolute-form with user information": start(b"GET http://u@127.0.0.1/ HTTP/1.1"),
    "absolute-form with a port of letters": start(b"GET http://127.0.0.1:x/ HTTP/1.1"),
}

OTHER_VERSIONS = {
    "HTTP/0.9": b"GET /\r\n\r\n" + SMUGGLED,
    "version 0.9": start(b"GET / HTTP/0.9"),
    "version 2.0": start(b"GET / HTTP/2.0"),
}

TUNNELS = {
    "CONNECT": start(b"CONNECT 127.0.0.1:80 HTTP/1.1"),
    "CONNECT with a path": start(b"CONNECT / HTTP/1.1"),
}

OVERSIZED = {
    "value": post(b"X: " + BIG),
    "name": post(BIG + b": x"),
    "target": start(b"GET /" + BIG + b" HTTP/1.1"),
    "method": start(BIG + b" / HTTP/1.1"),
    "number of headers": post(*(b"X-%d: y" % number for number in range(3000))),
}

CHUNKS = {name: post(CHUNKED, body=body) for name, body in BAD_CHUNKS.items()}

REFUSED = {
    400: {
        **{f"length: {name}": raw for name, raw in LENGTHS.items()},
        **{f"coding: {name}": raw for name, raw in CODINGS.items()},
        **{f"chunk: {name}": raw for name, raw in CHUNKS.items()},
        **{f"line: {name}": raw for name, raw in LINES.items()},
        **{f"host: {name}": raw for name, raw in HOSTS.items()},
        **{f"start: {name}": raw for name, raw in START_LINES.items()},
        **{f"start: {name}": raw for name, raw in OTHER_VERSIONS.items()},
        **{f"oversized: {name}": raw for name, raw in OVERSIZED.items()},
    },
    501: {
        **{f"coding: {name}": raw for name, raw in UNKNOWN_CODINGS.items()},
        **{f"start: {name}": raw for name, raw in TUNNELS.items()},
    },
}

SHAPES = [pytest.param(raw, status, id=name) for status, shapes in REFUSED.items() for name, raw in shapes.items()]
"""Requests with the status each is refused with."""

SMALL_SHAPES = [
    pytest.param(raw, status, id=name)
    for status, shapes in REFUSED.items()
    for name, raw in shapes.items()
    if not name.startswith("oversized")
]


@attrs.frozen
class Guarded:
    """A gateway before an upstream that reads whole requests and answers them."""

    up: ScriptedUpstream
    gate: Serving

    async def refuses(self, client: RawClient, status: int) -> None:
        """One answer of ``status`` and then the end of the connection; nothing else."""
        response = await read_refusal(client)
        assert response.status == status
        assert response.version in ((1, 0), (1, 1))
        assert CANARY not in response.body
        if response.version == (1, 1):
            assert response.header("connection") == b"close"
        rest, _ = await client.read_until_close()
        assert rest == b""

    async def reached_nobody(self) -> None:
        """No whole request went upstream; and a clean one still does, on a clean connection."""
        async with self.gate.caller() as c:
            await c.get("/clean")
            assert (await c.read_response()).body == b"/clean"
        assert [request.target for request in self.up.requests if request.complete] == [b"/clean"]


async def read_refusal(client: RawClient) -> ReceivedResponse:
    response = await client.read_head()
    await client.read_body()
    return response


@serve_forever
async def attentive(request: ReceivedRequest, conn: UpstreamConnection) -> None:
    try:
        await request.body()
    except BrokenRequest:
        conn.close()
        return
    await conn.send_response(200, body=request.target)


@pytest.fixture
async def guarded() -> AsyncIterator[Guarded]:
    async with ScriptedUpstream(attentive) as up, relaying(up) as gate:
        yield Guarded(up, gate)


async def turns(count: int = 3) -> None:
    """Let the gateway read what was sent, so that the next bytes come in a read of their own."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("raw", "status"), SHAPES)
async def test_trap_smuggling_shapes_are_refused_and_reach_no_upstream(
    guarded: Guarded, raw: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with guarded.gate.caller() as c:
        await c.send(raw)
        await guarded.refuses(c, status)
    await guarded.reached_nobody()
    assert CANARY.decode() not in caplog.text


@pytest.mark.parametrize(("raw", "status"), SMALL_SHAPES)
async def test_trap_smuggling_shapes_are_refused_byte_by_byte(guarded: Guarded, raw: bytes, status: int) -> None:
    async with guarded.gate.caller() as c:
        with contextlib.suppress(PeerLeft):  # refused before the end
            for at in range(len(raw)):
                await c.send(raw[at : at + 1])
                await turns()
        await guarded.refuses(c, status)
    await guarded.reached_nobody()


@pytest.mark.parametrize("body", BAD_CHUNKS.values(), ids=BAD_CHUNKS)
async def test_trap_a_bad_chunk_after_the_head_went_upstream(guarded: Guarded, body: bytes) -> None:
    head = b"POST / HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n\r\n"
    async with guarded.gate.caller() as c:
        await c.send(head + chunk_bytes(b"good"))
        (request,) = await guarded.up.wait_for_requests(1)
        await c.send(body + SMUGGLED)
        await guarded.refuses(c, 400)
        await guarded.up.connections[0].closed()
        assert not request.complete
    await guarded.reached_nobody()


async def test_a_bad_chunk_after_an_early_answer_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LINGER", 0.1)

    @serve_forever
    async def early(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_response(200, body=request.target)

    async with ScriptedUpstream(early, ignore_errors=True) as up, relaying(up) as gate, gate.caller() as c:
        await c.send(b"POST /early HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n\r\n" + chunk_bytes(b"good"))
        response = await c.read_response()
        assert (response.status, response.body) == (200, b"/early")
        with contextlib.suppress(PeerLeft):  # the rest of an upload that was answered may be left unread
            await c.send(b"x\r\n" + SMUGGLED)
        raw, _ = await c.read_until_close()
        assert b"/smuggled" not in raw
        assert [request.target for request in up.requests] == [b"/early"]


@pytest.mark.parametrize(
    "bad", [LENGTHS["differing lengths"], LINES["NUL in a value"], HOSTS["double"]], ids=["length", "line", "host"]
)
async def test_a_refused_request_after_a_good_one_on_the_same_connection(guarded: Guarded, bad: bytes) -> None:
    async with guarded.gate.caller() as c:
        await c.get("/good")
        assert (await c.read_response()).body == b"/good"
        await c.send(bad)
        await guarded.refuses(c, 400)
    assert [request.target for request in guarded.up.requests] == [b"/good"]


async def test_bytes_after_a_whole_body_are_the_next_request_and_nothing_else(guarded: Guarded) -> None:
    async with guarded.gate.caller() as c:
        await c.send(post(b"Content-Length: 3", body=b"abc"))
        assert (await c.read_response()).body.startswith(b"/v1/messages")
        assert (await c.read_response()).body == b"/smuggled"
    first, second = guarded.up.requests
    assert bytes(first.arrived) == b"abc"
    assert (second.target, bytes(second.arrived)) == (b"/smuggled", b"")


async def test_an_upgrade_that_was_refused_hides_no_request(guarded: Guarded) -> None:
    lines = (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: x", b"Content-Length: 0")
    async with guarded.gate.caller() as c:
        await c.send(post(*lines))
        assert (await c.read_response()).body.startswith(b"/v1/messages")
        assert (await c.read_response()).body == b"/smuggled"
    assert len(guarded.up.requests) == 2


async def test_a_head_that_never_ends_reaches_nobody(guarded: Guarded) -> None:
    async with guarded.gate.caller() as c:
        await c.send(b"GET / HTTP/1.1\r\n" + HOST)
        await turns(10)
        c.half_close()
        await c.read_until_close()
    await guarded.reached_nobody()


@pytest.mark.parametrize("framing", [b"Content-Length: 9", CHUNKED])
@pytest.mark.parametrize("reset", [False, True])
async def test_a_body_that_never_ends_reaches_nobody_whole(guarded: Guarded, framing: bytes, reset: bool) -> None:
    async with guarded.gate.caller() as c:
        await c.send(b"POST / HTTP/1.1\r\n" + HOST + framing + b"\r\n\r\n3\r\nabc")
        (request,) = await guarded.up.wait_for_requests(1)
        c.abort() if reset else c.close()
        await guarded.up.connections[0].closed()
        assert not request.complete
    await guarded.reached_nobody()


UPGRADE = b"POST /upgrade HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: %s\r\nContent-Length: 3\r\n\r\nabc"


@pytest.mark.parametrize("protocol", [b"websocket", pytest.param(b"h2c"), pytest.param(b"tcp")])
async def test_an_upgrade_nobody_takes_up_moves_no_boundary(protocol: bytes) -> None:
    """What follows is either the next request, from its first byte on, or is not read at all."""
    arrived = asyncio.Event()

    @serve_forever
    async def slow(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await request.body()
        await arrived.wait()
        await conn.send_response(200, body=request.target)

    async with ScriptedUpstream(slow) as up, relaying(up) as gate, gate.caller(guard=2.0) as c:
        await c.send(UPGRADE % protocol + b"GET /next HTTP/1.1\r\n" + HOST + b"X: ")
        await up.wait_for_requests(1)
        with contextlib.suppress(PeerLeft):
            await c.send(SMUGGLED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        arrived.set()
        await c.read_until_close()
        assert [request.target for request in up.requests] in ([b"/upgrade", b"/next"], [b"/upgrade"])


@pytest.mark.parametrize("protocol", [b"websocket", pytest.param(b"h2c"), pytest.param(b"tcp")])
async def test_a_request_behind_an_upgrade_nobody_takes_up_is_answered_or_cut(
    guarded: Guarded, protocol: bytes
) -> None:
    async with guarded.gate.caller(guard=0.5) as c:
        await c.send(UPGRADE % protocol + b"GET /next HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n")
        assert (await c.read_response()).body == b"/upgrade"
        raw, _ = await c.read_until_close()
        assert raw == b"" or raw.endswith(b"/next")

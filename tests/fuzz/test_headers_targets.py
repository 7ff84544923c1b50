"""Law 1 under random input: heads, targets, bodies and the cuts between them come out byte for byte as they went in."""

import asyncio
import contextlib
import itertools
import re
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fiedler_proxy.testing import (
    BrokenRequest,
    PeerLeft,
    RawClient,
    ReceivedRequest,
    ScriptedUpstream,
    UpstreamConnection,
    chunk_bytes,
    head_bytes,
    serve_forever,
)
from tests.integration.helpers import relaying

Pairs = list[tuple[bytes, bytes]]

HOST = (b"Host", b"127.0.0.1")
CHUNKED = (b"Transfer-Encoding", b"chunked")

TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
KNOWN = [b"Accept", b"accept-encoding", b"ANTHROPIC-BETA", b"anthropic-version", b"Authorization", b"Content-Type",
         b"Content-Encoding", b"Cookie", b"date", b"Set-Cookie", b"server", b"User-Agent", b"x-api-key", b"X-Model",
         b"x-request-id", b"traceparent", b"Retry-After", b"request-id", b"Via", b"Forwarded", b"If-None-Match",
         b"x-stainless-os", b"ETag", b"Content-Range"]  # fmt: skip
OF_THIS_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
               b"proxy-authenticate", b"proxy-authorization", b"proxy-authentication-info", b"host", b"content-length",
               b"expect", b"origin", b"sec-fetch-site", b"x-kgb-key", b"x-kgb-request-id"}  # fmt: skip
"""Names that mean something to the gateway or to the framing: their own tests are elsewhere."""

SINGLE = {b"content-type", b"content-range", b"content-location", b"etag", b"max-forwards", b"server", b"user-agent"}
"""Names that RFC 9110 allows once and that aiohttp's parser refuses (400) to take twice in a request."""


class Once:
    """Lets the first header of a name in SINGLE pass, and every other header."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()

    def __call__(self, pair: tuple[bytes, bytes]) -> bool:
        name = pair[0].lower()
        if name in self.seen:
            return False
        self.seen |= {name} & SINGLE
        return True


tokens = st.lists(st.sampled_from(list(TOKEN)), min_size=1, max_size=20).map(bytes)
names = (st.sampled_from(KNOWN) | tokens).filter(lambda name: name.lower() not in OF_THIS_HOP)
values = st.binary(max_size=60).map(lambda raw: re.sub(rb"[\x00-\x08\x0a-\x1f\x7f]", b"", raw).strip(b" \t"))
headers = st.lists(st.tuples(names, values), max_size=12)
methods = st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "PROPFIND", "REPORT"])
targets = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#"), max_size=60)
requested = headers.map(lambda pairs: list(filter(Once(), pairs)))
cuts = st.lists(st.integers(min_value=0, max_value=400), max_size=12)
bodies = st.binary(max_size=400)


def pieces(data: bytes, at: Sequence[int]) -> list[bytes]:
    """``data`` cut at the given offsets, without empty pieces."""
    places = sorted({0, len(data), *(place for place in at if place < len(data))})
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


def framed(body: bytes, framing: str, at: Sequence[int]) -> tuple[Pairs, bytes]:
    """The header that announces ``body`` and its bytes: by length, in chunks cut at ``at``, or until the end."""
    if framing == "length":
        return [(b"Content-Length", b"%d" % len(body))], body
    if framing == "close":
        return [], body
    chunks = [chunk_bytes(piece, b";n=1" if place % 2 else b"") for place, piece in enumerate(pieces(body, at))]
    return [CHUNKED], b"".join(chunks) + b"0\r\n\r\n"


async def send_cut(conn: RawClient | UpstreamConnection, data: bytes, at: Sequence[int]) -> None:
    """Write ``data`` cut at ``at``, each piece in a segment of its own that the gateway gets a turn to read."""
    for piece in pieces(data, at):
        await conn.send(piece)
        for _ in range(3):
            await asyncio.sleep(0)


@serve_forever
async def echo(request: ReceivedRequest, conn: UpstreamConnection) -> None:
    await conn.send_response(200, body=await request.body())


def expected(sent: Pairs) -> Pairs:
    """The headers that the upstream must see, its own Host aside."""
    kept = [pair for pair in sent if pair not in (HOST, CHUNKED)]
    return [*kept, CHUNKED] if CHUNKED in sent else kept


@given(method=methods, sent=requested, place=st.integers(min_value=0, max_value=12))
@settings(max_examples=100, deadline=None)
async def test_request_headers_reach_the_upstream_byte_for_byte(method: str, sent: Pairs, place: int) -> None:
    sent = [*sent[:place], HOST, *sent[place:]]
    async with ScriptedUpstream(echo) as up, relaying(up) as gate, gate.caller() as c:
        await c.request(method, "/x", sent, exact=True)
        await c.read_response()
        (request,) = up.requests
        assert request.method == method
        assert request.without("host") == expected(sent)
        assert request.header("host") == f"127.0.0.1:{up.port}".encode()
        assert request.headers.index((b"Host", request.all("host")[0])) == sent.index(HOST)


@given(sent=headers, status=st.sampled_from([200, 201, 206, 302, 404, 429, 529, 599, 204, 304]), reason=values)
@settings(max_examples=100, deadline=None)
async def test_response_heads_reach_the_caller_byte_for_byte(sent: Pairs, status: int, reason: bytes) -> None:
    ends = [] if status in (204, 304) else [(b"Content-Length", b"0")]
    raw = head_bytes(b"HTTP/1.1 %d %s" % (status, reason), [*sent, *ends])

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send(raw)

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/x")
        response = await c.read_response()
        assert response.raw_head == raw
        await c.get("/again")
        assert (await c.read_response()).raw_head == raw


@given(target=targets, method=methods)
@example(target="/a/../b/./c//d", method="GET")
@example(target="%zz%2f%", method="GET")
@example(target='"<>\\^`{|}', method="GET")
@example(target="?", method="GET")
@example(target="//evil.example", method="GET")
@settings(max_examples=150, deadline=None)
async def test_targets_reach_the_upstream_byte_for_byte(target: str, method: str) -> None:
    async with ScriptedUpstream(echo) as up, relaying(up) as gate, gate.caller() as c:
        await c.request(method, "/" + target, [HOST], exact=True)
        assert (await c.read_response()).status == 200
        assert up.requests[0].target == b"/" + target.encode()


@given(target=targets, scheme=st.sampled_from(["http", "https", "HTTP"]), method=methods)
@settings(max_examples=75, deadline=None)
async def test_absolute_targets_reach_the_upstream_in_origin_form(target: str, scheme: str, method: str) -> None:
    async with ScriptedUpstream(echo) as up, relaying(up) as gate, gate.caller() as c:
        await c.request(method, f"{scheme}://127.0.0.1:1/{target}", [HOST], exact=True)
        assert (await c.read_response()).status == 200
        assert up.requests[0].target == b"/" + target.encode()


@given(raw=st.binary(max_size=30).filter(lambda raw: re.search(rb"[^\x21-\x7e]|#", raw) is not None))
@settings(max_examples=100, deadline=None)
async def test_targets_of_other_bytes_reach_nobody(raw: bytes) -> None:
    async with ScriptedUpstream(echo) as up, relaying(up) as gate, gate.caller() as c:
        await c.send(b"GET /" + raw + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        answer, _ = await c.read_until_close()
        for request in up.requests:
            # The bytes ended the target and stood where others may stand; what passed is a target all the same.
            assert re.fullmatch(rb"/[\x21\x22\x24-\x7e]*", request.target)
            assert (b"/" + raw + b" ").startswith(request.target + b" ")
        assert up.requests or re.match(rb"HTTP/1\.[01] 400 ", answer)


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@given(body=bodies, chunks=cuts, segments=cuts)
@settings(max_examples=50, deadline=None)
async def test_any_cutting_of_a_response_gives_the_same_bytes(
    framing: str, body: bytes, chunks: list[int], segments: list[int]
) -> None:
    announced, payload = framed(body, framing, chunks)
    raw = head_bytes(b"HTTP/1.1 200 OK", [(b"X-A", b"\xff"), *announced]) + payload

    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await send_cut(conn, raw, segments)

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/")
        response = await c.read_response()
        assert response.body == body
        assert response.without("transfer-encoding") == [(b"X-A", b"\xff"), *(announced if framing == "length" else [])]


@pytest.mark.parametrize("framing", ["length", "chunked"])
@given(sent=requested, target=targets, body=bodies, chunks=cuts, segments=cuts)
@settings(max_examples=50, deadline=None)
async def test_any_cutting_of_a_request_gives_the_same_upstream_request(
    framing: str, sent: Pairs, target: str, body: bytes, chunks: list[int], segments: list[int]
) -> None:
    announced, payload = framed(body, framing, chunks)
    pairs = [HOST, *sent, *announced]
    raw = head_bytes(b"POST /" + target.encode() + b" HTTP/1.1", pairs) + payload
    async with ScriptedUpstream(echo) as up, relaying(up) as gate, gate.caller() as c:
        for at in ((), segments):
            await send_cut(c, raw, at)
            assert (await c.read_response()).body == body
        whole, cut = up.requests
        assert cut.raw_head == whole.raw_head
        assert cut.arrived == whole.arrived == body
        assert cut.target == b"/" + target.encode()
        assert cut.without("host") == expected(pairs)


@given(payloads=st.lists(st.tuples(st.sampled_from(["length", "chunked"]), bodies), min_size=2, max_size=5), at=cuts)
@settings(max_examples=50, deadline=None)
async def test_requests_on_one_connection_never_mix(payloads: list[tuple[str, bytes]], at: list[int]) -> None:
    raw = b""
    for framing, body in payloads:
        announced, payload = framed(body, framing, at)
        raw += head_bytes(b"POST /%d HTTP/1.1" % len(body), [HOST, *announced]) + payload
    async with ScriptedUpstream(echo) as up, relaying(up) as gate, gate.caller() as c:
        await send_cut(c, raw, at)
        for _, body in payloads:
            assert (await c.read_response()).body == body
        seen = [(request.target, bytes(request.arrived)) for request in up.requests]
        assert seen == [(b"/%d" % len(body), body) for _, body in payloads]


SEEDS = [
    head_bytes(b"POST /a HTTP/1.1", [HOST, (b"X", b"y"), (b"Content-Length", b"5")]) + b"hello",
    head_bytes(b"POST /a HTTP/1.1", [HOST, CHUNKED]) + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: v\r\n\r\n",
    head_bytes(
        b"GET http://127.0.0.1/a?b HTTP/1.1", [HOST, (b"Connection", b"x-a, upgrade"), (b"Upgrade", b"websocket")]
    ),
    head_bytes(b"POST /a HTTP/1.0", [(b"Content-Length", b"2"), (b"Connection", b"keep-alive")]) + b"ab",
]
HARSH = [b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b",", b";", b"\x0b", b"\xff", b"0", b"9", b"-", b"#", b"%",
         b"/", b"\r\n\r\n", b"Content-Length: 1\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n "]  # fmt: skip
edits = st.lists(
    st.tuples(st.integers(min_value=0, max_value=150), st.integers(min_value=0, max_value=3), st.sampled_from(HARSH)),
    min_size=1,
    max_size=4,
)


@given(seed=st.sampled_from(SEEDS), changes=edits, at=cuts)
@settings(max_examples=300, deadline=None)
async def test_whatever_a_caller_sends_the_upstream_sees_only_http(
    seed: bytes, changes: list[tuple[int, int, bytes]], at: list[int]
) -> None:
    raw = seed
    for place, gone, put in changes:
        place %= len(raw)
        raw = raw[:place] + put + raw[place + gone :]

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        try:
            await request.body()
        except BrokenRequest:
            conn.close()
            return
        await conn.send_response(200, [(b"X-Target", request.target)])

    # The upstream's parser is strict: what it cannot read fails this test when the upstream stops.
    async with ScriptedUpstream(script) as up, relaying(up) as gate:
        async with gate.caller() as c:
            with contextlib.suppress(PeerLeft):
                await send_cut(c, raw, at)
            for _ in range(30):
                await asyncio.sleep(0)
            with contextlib.suppress(PeerLeft, RuntimeError):
                c.half_close()
            answers, _ = await c.read_until_close()
        statuses = re.findall(rb"(?:\A|\r\n\r\n|\})HTTP/\d\.\d (\d\d\d) ", answers)
        assert not set(statuses) - {b"200", b"400", b"403", b"501"}, answers
        async with gate.caller() as c:
            await c.get("/clean")
            response = await c.read_response()
            assert (response.status, response.header("x-target")) == (200, b"/clean")

"""Law 1 for heads: what reaches the upstream and what comes back, compared as whole raw heads."""

import pytest

from fiedler_proxy.heads import Announcements
from fiedler_proxy.testing import (
    ReceivedRequest,
    ScriptedUpstream,
    UpstreamConnection,
    head_bytes,
    respond,
    serve_forever,
)

from .helpers import relaying

Pairs = list[tuple[bytes, bytes]]


def answering(raw_head: bytes, body: bytes = b"") -> ScriptedUpstream:
    """An upstream that answers every request with exactly these bytes."""

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await request.body()
        await conn.send(raw_head + body)

    return ScriptedUpstream(script)


def authority(up: ScriptedUpstream) -> bytes:
    return f"127.0.0.1:{up.port}".encode()


RAW_TARGETS = [
    "/",
    "//",
    "//evil.example/v1",
    "/a%2Fb",
    "/a%2fb",
    "/v1%3Aplain:generateContent",
    "/v1/models/x:streamGenerateContent?alt=sse",
    "/v1/messages?",
    "/v1/messages?beta=true",
    "/?",
    "/??a=b?c=d",
    "/?&&a==&",
    "/a/./b/../c",
    "/../..",
    "/%2e%2e/",
    "/a+b%20c?q=a+b%20c",
    '/~user/{}|^`\\"<>',
    "/;p=1/a,b;c=d",
    "/%00%zz%",
    "/@user:pw@host/",
    "/http://evil.example/",
    "/a?u=http://evil.example/%23",
    "/[::1]",
    "/" + "x" * 8000,
]


@pytest.mark.parametrize("target", RAW_TARGETS)
async def test_trap_raw_target_is_kept_exactly(target: str) -> None:
    async with ScriptedUpstream() as up, relaying(up) as gate, gate.caller() as c:
        await c.get(target)
        assert (await c.read_response()).status == 200
        assert [request.target for request in up.requests] == [target.encode()]
        assert up.requests[0].header("host") == authority(up)


@pytest.mark.parametrize("target", RAW_TARGETS)
async def test_the_base_path_stands_before_the_raw_target(target: str) -> None:
    async with ScriptedUpstream() as up, relaying(up, base="/anthropic%2Fproxy/v1") as gate, gate.caller() as c:
        await c.get(target)
        assert (await c.read_response()).status == 200
        assert up.requests[0].target == b"/anthropic%2Fproxy/v1" + target.encode()


@pytest.mark.parametrize(
    "target",
    [b"/caf\xe9", b"/caf\xc3\xa9", b"/?q=\xff", b"/a#b", b"/#", b"http://127.0.0.1/#", b"/a?b#c", b"x", b"*", b"?a",
     b"127.0.0.1:80", b"ftp://127.0.0.1/", b"http://", b"http:///x", b"http://user@127.0.0.1/",
     b"/a\tb", b"/a\x01b", b"/a\x7fb"],
)  # fmt: skip
async def test_trap_bad_targets_get_400_and_reach_no_upstream(target: bytes) -> None:
    async with ScriptedUpstream() as up, relaying(up) as gate, gate.caller() as c:
        await c.get(target)
        response = await c.read_response()
        assert response.status == 400
        assert target not in response.body or len(target) < 3
        await c.closed()
        assert up.connections == []


@pytest.mark.parametrize(
    ("absolute", "sent"),
    [
        ("http://127.0.0.1:{port}/v1/messages?beta=true", "/v1/messages?beta=true"),
        ("HTTP://127.0.0.1:{port}//x%2Fy", "//x%2Fy"),
        ("https://localhost/", "/"),
        ("http://localhost", "/"),
        ("http://localhost?a=b", "/?a=b"),
        ("http://[::1]:9/x?", "/x?"),
    ],
)
async def test_absolute_form_becomes_origin_form_of_the_configured_upstream(absolute: str, sent: str) -> None:
    async with ScriptedUpstream() as up, relaying(up) as gate, gate.caller() as c:
        await c.get(absolute.format(port=gate.address.port), [(b"Host", b"other.example")])
        assert (await c.read_response()).status == 200
        assert up.requests[0].raw_head == head_bytes(b"GET %s HTTP/1.1" % sent.encode(), [(b"Host", authority(up))])


async def test_absolute_form_names_no_other_upstream() -> None:
    async with ScriptedUpstream() as up, ScriptedUpstream() as other, relaying(up) as gate, gate.caller() as c:
        await c.get(f"{other.url}/v1")
        assert (await c.read_response()).status == 200
        assert [request.target for request in up.requests] == [b"/v1"]
        assert other.connections == []


async def test_absolute_form_decides_whether_the_host_is_allowed() -> None:
    async with ScriptedUpstream() as up, relaying(up) as gate, gate.caller() as c:
        await c.get("http://rebound.example/v1", [(b"Host", b"localhost")])
        assert (await c.read_response()).status == 403
        assert up.connections == []


@pytest.mark.parametrize(
    ("target", "sent"), [("*", b"*"), ("http://localhost", b"*"), ("http://localhost/", b"/"), ("/*", b"/*")]
)
async def test_options_of_the_server_itself(target: str, sent: bytes) -> None:
    async with ScriptedUpstream() as up, relaying(up, base="/base") as gate, gate.caller() as c:
        await c.request("OPTIONS", target)
        assert (await c.read_response()).status == 200
        assert up.requests[0].target == (b"*" if sent == b"*" else b"/base" + sent)


@pytest.mark.parametrize(
    "method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "QUERY", "PURGE"]
)
async def test_every_method_goes_to_the_upstream(method: str) -> None:
    async with ScriptedUpstream(respond(418, body=b"x")) as up, relaying(up) as gate, gate.caller() as c:
        await c.request(method, "/v1/x")
        response = await c.read_response()
        assert (response.status, response.body) == (418, b"x")
        assert up.requests[0].method == method


async def test_trap_nothing_is_invented_towards_the_upstream() -> None:
    """No Accept-Encoding, User-Agent, Accept, Content-Type, Connection, Via, Forwarded or X-Forwarded-For."""
    async with ScriptedUpstream() as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/v1/models?limit=1000")
        await c.read_response()
        await c.post("/v1/messages", [(b"x-api-key", b"k")], b"{}")
        await c.read_response()
        await c.post("/empty")
        await c.read_response()
        host = (b"Host", authority(up))
        assert [request.raw_head for request in up.requests] == [
            head_bytes(b"GET /v1/models?limit=1000 HTTP/1.1", [host]),
            head_bytes(b"POST /v1/messages HTTP/1.1", [host, (b"x-api-key", b"k"), (b"Content-Length", b"2")]),
            head_bytes(b"POST /empty HTTP/1.1", [host, (b"Content-Length", b"0")]),
        ]


@pytest.mark.parametrize(
    "status_line", [b"HTTP/1.1 200 OK", b"HTTP/1.1 200 ", b"HTTP/1.1 299 Fine & caf\xe9", b"HTTP/1.1 529 Overloaded"]
)
async def test_trap_content_type_server_and_date_are_not_invented(status_line: bytes) -> None:
    head = head_bytes(status_line, [(b"Content-Length", b"2")])
    async with answering(head, b"{}") as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/")
        response = await c.read_response()
        assert response.raw_head == head
        assert response.body == b"{}"


async def test_trap_server_is_not_invented_for_our_own_answers() -> None:
    async with ScriptedUpstream() as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/healthz")
        assert (await c.read_response()).header("server") is None
        await c.get("/a#b")
        assert (await c.read_response()).header("server") is None


ODD_REQUEST: Pairs = [
    (b"hOsT", b""),  # replaced below
    (b"X-Stainless-OS", b"Linux"),
    (b"x-stainless-os", b"lower"),
    (b"USER-AGENT", b"claude-cli/2.0"),
    (b"accept-ENCODING", b"gzip;q=0.5, br"),
    (b"anthropic-beta", b"a-2025-01-01"),
    (b"X-Caf\x7e", b"caf\xe9 \xff\xfe \xc3\xa9"),
    (b"Anthropic-Beta", b"b-2025-01-01,c"),
    (b"X-Empty", b""),
    (b"anthropic-beta", b"a-2025-01-01"),
    (b"X-Tabs", b"a\tb  c"),
    (b"cookie", b"a=1"),
    (b"Cookie", b"b=2"),
    (b"X-Request-Id", b"the caller's own"),
    (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    (b"Via", b"1.1 somebody"),
    (b"Forwarded", b"for=192.0.2.1"),
    (b"X-Forwarded-For", b"192.0.2.1"),
    (b"Authorization", b"Bearer t"),
    (b"x-unknown-\x21#$%&'*+.^_`|~", b"token"),
]


async def test_trap_header_case_order_duplicates_and_non_utf8_bytes_reach_the_upstream() -> None:
    async with ScriptedUpstream() as up, relaying(up) as gate, gate.caller() as c:
        given = [(name, value or gate.host if name == b"hOsT" else value) for name, value in ODD_REQUEST]
        await c.get("/", given)
        assert (await c.read_response()).status == 200
        expected = [(name, authority(up) if name == b"hOsT" else value) for name, value in ODD_REQUEST]
        assert up.requests[0].raw_head == head_bytes(b"GET / HTTP/1.1", expected)


ODD_RESPONSE: Pairs = [
    (b"sErVeR", b"cloudflare"),
    (b"DATE", b"Thu, 01 Jan 1970 00:00:00 GMT"),
    (b"Set-Cookie", b"a=1; Path=/"),
    (b"set-cookie", b"b=2; Domain=example.org"),
    (b"Set-Cookie", b"a=1; Path=/"),
    (b"X-Odd", b"caf\xe9 \xff\xfe \xc3\xa9"),
    (b"x-odd", b"lower"),
    (b"X-ODD", b"upper"),
    (b"X-Empty", b""),
    (b"content-TYPE", b"text/event-stream; charset=utf-8"),
    (b"anthropic-ratelimit-requests-remaining", b"9"),
    (b"Request-ID", b"req_011"),
    (b"retry-after", b"7"),
    (b"x-should-retry", b"true"),
    (b"Alt-Svc", b'h3=":443"'),
    (b"Content-Length", b"0"),
    (b"X-Last", b"after the length"),
]


async def test_trap_header_case_order_duplicates_and_non_utf8_bytes_reach_the_caller() -> None:
    head = head_bytes(b"HTTP/1.1 200 OK", ODD_RESPONSE)
    async with answering(head) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/")
        assert (await c.read_response()).raw_head == head


HOP_BY_HOP_REQUEST: Pairs = [
    (b"Connection", b"keep-alive, X-Private"),
    (b"X-Private", b"1"),
    (b"connection", b"x-other , ,TE"),
    (b"X-Other", b"2"),
    (b"x-OTHER", b"3"),
    (b"Keep-Alive", b"timeout=5"),
    (b"Proxy-Connection", b"keep-alive"),
    (b"Proxy-Authorization", b"Basic c2VjcmV0"),
    (b"TE", b"trailers"),
    (b"Trailer", b"X-Sum"),
    (b"Upgrade", b"h2c"),
    (b"X-Kept", b"4"),
]


async def test_trap_hop_by_hop_and_nominated_request_headers_end_here() -> None:
    async with ScriptedUpstream() as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/", HOP_BY_HOP_REQUEST)
        assert (await c.read_response()).status == 200
        assert up.requests[0].headers == [(b"Host", authority(up)), (b"X-Kept", b"4")]


async def test_trap_hop_by_hop_and_nominated_response_headers_end_here() -> None:
    headers = [
        (b"Connection", b"X-Private, keep-alive"),
        (b"X-Private", b"1"),
        (b"Keep-Alive", b"timeout=5"),
        (b"Proxy-Authenticate", b"Basic"),
        (b"Proxy-Connection", b"keep-alive"),
        (b"Trailer", b"X-Sum"),
        (b"Upgrade", b"h2c"),
        (b"TE", b"x"),
        (b"X-Kept", b"2"),
        (b"Content-Length", b"1"),
    ]
    async with answering(head_bytes(b"HTTP/1.1 200 OK", headers), b"x") as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/")
        response = await c.read_response()
        assert response.raw_head == head_bytes(b"HTTP/1.1 200 OK", [(b"X-Kept", b"2"), (b"Content-Length", b"1")])


NEVER_TAKEN: Pairs = [
    (b"Authorization", b"Bearer t"),
    (b"x-api-key", b"k"),
    (b"x-goog-api-key", b"g"),
    (b"Cookie", b"c=1"),
    (b"Content-Type", b"application/json"),
    (b"Content-Encoding", b"gzip"),
    (b"anthropic-version", b"2023-06-01"),
    (b"anthropic-beta", b"b"),
    (b"Content-Length", b"3"),
]


async def test_trap_nomination_never_removes_framing_host_or_credentials() -> None:
    names = b", ".join(name.swapcase() for name, _ in NEVER_TAKEN)
    async with ScriptedUpstream() as up, relaying(up) as gate, gate.caller() as c:
        await c.post("/", [(b"Connection", b"Host, " + names), *NEVER_TAKEN], b"abc")
        assert (await c.read_response()).status == 200
        assert up.requests[0].headers == [(b"Host", authority(up)), *NEVER_TAKEN]
        assert up.requests[0].arrived == b"abc"


async def test_trap_nomination_never_removes_the_chunked_framing_of_a_request() -> None:
    async with ScriptedUpstream() as up, relaying(up) as gate, gate.caller() as c:
        await c.post(
            "/", [(b"Connection", b"transfer-encoding"), (b"Transfer-Encoding", b"chunked")], b"3\r\nabc\r\n0\r\n\r\n"
        )
        assert (await c.read_response()).status == 200
        assert up.requests[0].headers == [(b"Host", authority(up)), (b"Transfer-Encoding", b"chunked")]
        assert up.requests[0].arrived == b"abc"


@pytest.mark.parametrize("chunked", [False, True])
async def test_trap_nomination_never_removes_the_framing_of_a_response(chunked: bool) -> None:
    nomination = (b"Connection", b"content-length, transfer-encoding, content-type, content-encoding")
    headers = [nomination, (b"Content-Type", b"a/b"), (b"Content-Encoding", b"x")]
    async with (
        ScriptedUpstream(respond(200, headers, b"abc", chunked=chunked)) as up,
        relaying(up) as gate,
        gate.caller() as c,
    ):
        await c.get("/")
        response = await c.read_response()
        framing = (b"Transfer-Encoding", b"chunked") if chunked else (b"Content-Length", b"3")
        assert response.headers == [*headers[1:], framing]
        assert response.body == b"abc"


async def test_headers_of_the_gateways_own_stay_here() -> None:
    async with ScriptedUpstream() as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/", [(b"X-KGB-Key", b"kgb_secret"), (b"x-kgb-request-id", b"forged"), (b"x-kgb-other", b"kept")])
        await c.read_response()
        assert up.requests[0].headers == [(b"Host", authority(up)), (b"x-kgb-other", b"kept")]


async def test_via_and_forwarded_stand_only_where_configured() -> None:
    say = Announcements(via="kgb", forwarded=True)
    async with (
        ScriptedUpstream(respond(200, [(b"Via", b"1.1 origin")])) as up,
        relaying(up, say=say) as gate,
        gate.caller() as c,
    ):
        await c.get("/", [(b"Via", b"1.0 before"), (b"Forwarded", b"for=192.0.2.1")])
        response = await c.read_response()
        assert up.requests[0].headers == [
            (b"Host", authority(up)),
            (b"Via", b"1.0 before"),
            (b"Forwarded", b"for=192.0.2.1"),
            (b"Via", b"1.1 kgb"),
            (b"Forwarded", b'for=127.0.0.1;host="%s"' % gate.host),
        ]
        assert response.headers == [(b"Via", b"1.1 origin"), (b"Content-Length", b"0"), (b"Via", b"1.1 kgb")]


async def test_an_http_1_0_request_without_host_gets_the_upstreams() -> None:
    async with ScriptedUpstream() as up, relaying(up) as gate, gate.caller() as c:
        await c.send(b"GET /x HTTP/1.0\r\nX-A: 1\r\n\r\n")
        response = await c.read_response()
        assert up.requests[0].raw_head == head_bytes(b"GET /x HTTP/1.1", [(b"Host", authority(up)), (b"X-A", b"1")])
        assert response.raw_head == b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"
        assert not await c.closed()


async def test_an_http_1_0_caller_that_keeps_its_connection() -> None:
    async with ScriptedUpstream(respond(body=b"x")) as up, relaying(up) as gate, gate.caller() as c:
        for _ in range(2):
            await c.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            response = await c.read_response()
            assert response.raw_head == b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n"
        assert [request.header("connection") for request in up.requests] == [None, None]


async def test_a_caller_that_asks_to_close_is_told_so_and_the_upstream_is_not() -> None:
    async with ScriptedUpstream(respond(body=b"x")) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/", [(b"Connection", b"close")])
        response = await c.read_response()
        assert response.headers == [(b"Content-Length", b"1"), (b"Connection", b"close")]
        assert not await c.closed()
        assert up.requests[0].header("connection") is None
        await gate.settled(1)


async def test_trap_header_limits_of_8190_bytes_do_not_bind_the_upstream() -> None:
    headers = [
        (b"X-Long", b"v" * 100_000),
        (b"Content-Length", b"0"),
        *((b"x-%d" % number, b"v") for number in range(900)),
    ]
    head = head_bytes(b"HTTP/1.1 200 OK", headers)
    async with answering(head) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/")
        assert (await c.read_response()).raw_head == head


async def test_trap_header_limits_of_8190_bytes_can_be_raised_for_callers() -> None:
    options: dict[str, object] = {"max_field_size": 65536, "max_line_size": 65536}
    async with ScriptedUpstream() as up, relaying(up, server_options=options) as gate, gate.caller() as c:
        target, value = b"/" + b"t" * 30_000, b"v" * 30_000
        await c.get(target, [(b"X-Long", value)])
        assert (await c.read_response()).status == 200
        assert (up.requests[0].target, up.requests[0].header("x-long")) == (target, value)

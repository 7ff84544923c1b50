"""Heads as they go on the wire: law 1's short list of changes, each with its test."""

import pytest

from fiedler_proxy.exchange import Exchange
from fiedler_proxy.framing import ChunkedDecoder, LengthDecoder, NoBody, UntilClose
from fiedler_proxy.headers import RawHeaders
from fiedler_proxy.heads import (
    Announcements,
    CallerFraming,
    RequestHead,
    caller_framing,
    interim_head,
    relayed_headers,
    request_head,
    response_head,
    switching_head,
    switching_headers,
)
from fiedler_proxy.upstream import parse_upstream

UPSTREAM = parse_upstream("https://api.example.com")
HOST = (b"Host", b"127.0.0.1:8089")


def built(
    *headers: tuple[bytes, bytes],
    method: str = "POST",
    target: str = "/v1/messages?beta=true",
    version: tuple[int, int] = (1, 1),
    upstream: str = "https://api.example.com",
    say: Announcements | None = None,
    remote: str = "127.0.0.1",
) -> RequestHead:
    exchange = Exchange(method, target, version, headers, remote)
    return request_head(exchange, parse_upstream(upstream), say or Announcements())


def lines(head: RequestHead | bytes) -> list[bytes]:
    raw = head.raw if isinstance(head, RequestHead) else head
    assert raw.endswith(b"\r\n\r\n")
    return raw[:-4].split(b"\r\n")


class TestRequestHead:
    def test_nothing_is_invented(self) -> None:
        assert lines(built(HOST, method="GET")) == [b"GET /v1/messages?beta=true HTTP/1.1", b"Host: api.example.com"]

    def test_order_case_duplicates_and_odd_bytes_stay(self) -> None:
        headers = (
            (b"anthropic-beta", b"one"),
            (b"X-Odd", b"caf\xe9"),
            (b"hOSt", b"gateway"),
            (b"Anthropic-Beta", b"two"),
            (b"Cookie", b"a=1"),
            (b"x-request-id", b"theirs"),
            (b"traceparent", b"00-1"),
            (b"Expect", b"something-else"),
        )
        assert lines(built(*headers))[1:] == [
            b"anthropic-beta: one",
            b"X-Odd: caf\xe9",
            b"hOSt: api.example.com",
            b"Anthropic-Beta: two",
            b"Cookie: a=1",
            b"x-request-id: theirs",
            b"traceparent: 00-1",
            b"Expect: something-else",
        ]

    @pytest.mark.parametrize(
        ("upstream", "host"),
        [
            ("https://api.example.com", b"api.example.com"),
            ("https://api.example.com:8443", b"api.example.com:8443"),
            ("http://10.0.0.1:80", b"10.0.0.1"),
            ("http://[::1]:8081", b"[::1]:8081"),
            ("unix:/run/fiedler.sock", b"localhost"),
        ],
    )
    def test_host_names_the_upstream(self, upstream: str, host: bytes) -> None:
        assert lines(built(HOST, upstream=upstream))[1] == b"Host: " + host

    def test_the_base_path_stands_before_the_target(self) -> None:
        head = built(HOST, upstream="https://h/a%2Fb/", target="//x?y")
        assert lines(head)[0] == b"POST /a%2Fb//x?y HTTP/1.1"
        assert lines(built(HOST, upstream="https://h/base", target="*", method="OPTIONS"))[0] == b"OPTIONS * HTTP/1.1"

    def test_an_http_1_0_request_becomes_1_1_and_gets_a_host(self) -> None:
        head = built((b"X-A", b"1"), version=(1, 0), method="GET")
        assert lines(head) == [b"GET /v1/messages?beta=true HTTP/1.1", b"Host: api.example.com", b"X-A: 1"]

    def test_an_http_1_0_host_is_replaced_where_it_stands(self) -> None:
        head = built((b"X-A", b"1"), HOST, version=(1, 0), method="GET")
        assert lines(head)[1:] == [b"X-A: 1", b"Host: api.example.com"]

    def test_hop_by_hop_and_nominated_headers_end_here(self) -> None:
        headers = (
            HOST,
            (b"Connection", b"keep-alive, X-Mine, authorization, host"),
            (b"Keep-Alive", b"timeout=5"),
            (b"TE", b"trailers"),
            (b"Trailer", b"x"),
            (b"Proxy-Connection", b"keep-alive"),
            (b"Proxy-Authorization", b"Basic x"),
            (b"X-Mine", b"1"),
            (b"Authorization", b"Bearer x"),
            (b"Accept", b"*/*"),
        )
        assert lines(built(*headers, method="GET"))[1:] == [
            b"Host: api.example.com",
            b"Authorization: Bearer x",
            b"Accept: */*",
        ]

    def test_the_gateways_own_headers_end_here(self) -> None:
        head = built(HOST, (b"X-KGB-Key", b"k"), (b"x-kgb-request-id", b"i"), (b"x-api-key", b"p"))
        assert lines(head)[1:] == [b"Host: api.example.com", b"x-api-key: p"]

    def test_a_length_is_told_and_kept(self) -> None:
        head = built(HOST, (b"Content-Length", b"12"), (b"X-A", b"1"))
        assert (head.length, head.chunked) == (12, False)
        assert lines(head)[2:] == [b"Content-Length: 12", b"X-A: 1"]

    def test_a_chunked_body_is_chunked_again(self) -> None:
        head = built(HOST, (b"transfer-encoding", b"Chunked"), (b"X-A", b"1"))
        assert (head.length, head.chunked) == (0, True)
        assert lines(head)[2:] == [b"X-A: 1", b"Transfer-Encoding: chunked"]

    @pytest.mark.parametrize(
        ("version", "value", "expect"),
        [((1, 1), b"100-continue", True), ((1, 1), b"100-Continue", True), ((1, 0), b"100-continue", False),
         ((1, 1), b"200-ok", False)],
    )  # fmt: skip
    def test_expect_passes_and_is_told(self, version: tuple[int, int], value: bytes, expect: bool) -> None:
        head = built(HOST, (b"Expect", value), (b"Content-Length", b"1"), version=version)
        assert head.expect is expect
        assert b"Expect: " + value in lines(head)

    def test_a_value_that_would_break_out_is_refused(self) -> None:
        with pytest.raises(ValueError, match="CR, LF or NUL"):
            built(HOST, (b"X-A", b"1\r\nX-B: 2"))


class TestUpgrade:
    ASKED = ((b"Connection", b"keep-alive, Upgrade"), (b"Upgrade", b"WebSocket"), (b"Sec-WebSocket-Key", b"k"))

    def test_a_websocket_is_asked_for_at_the_upstream(self) -> None:
        head = built(HOST, *self.ASKED, method="GET")
        assert head.upgrade
        assert lines(head)[2:] == [b"Sec-WebSocket-Key: k", b"Connection: Upgrade", b"Upgrade: WebSocket"]

    @pytest.mark.parametrize(
        "asked",
        [
            ((b"Upgrade", b"websocket"),),
            ((b"Connection", b"Upgrade"), (b"Upgrade", b"h2c")),
            ((b"Connection", b"close"), (b"Upgrade", b"websocket")),
            ((b"Connection", b"upgrade"),),
        ],
    )
    def test_no_other_upgrade_leaves_this_hop(self, asked: RawHeaders) -> None:
        head = built(HOST, *asked, method="GET")
        assert not head.upgrade
        assert lines(head)[1:] == [b"Host: api.example.com"]

    def test_http_1_0_knows_no_upgrade(self) -> None:
        """RFC 9110 section 7.8: a server ignores Upgrade in an HTTP/1.0 request."""
        head = built(HOST, *self.ASKED, method="GET", version=(1, 0))
        assert not head.upgrade
        assert b"Upgrade: WebSocket" not in lines(head)


class TestAnnouncements:
    def test_nothing_is_said_by_default(self) -> None:
        assert not [line for line in lines(built(HOST)) if line.startswith((b"Via", b"Forwarded"))]

    def test_via_names_the_callers_version(self) -> None:
        """RFC 9110 section 7.6.3; an earlier Via stays, ours comes behind it."""
        head = built(HOST, (b"Via", b"1.1 first"), version=(1, 0), say=Announcements(via="kgb"))
        assert lines(head)[2:] == [b"Via: 1.1 first", b"Via: 1.0 kgb"]

    @pytest.mark.parametrize(
        ("remote", "host", "value"),
        [
            ("10.1.2.3", b"gw:8089", b'for=10.1.2.3;host="gw:8089"'),
            ("fe80::1", b"gw", b'for="[fe80::1]";host="gw"'),
            ("", b"gw", b'for=unknown;host="gw"'),
            ("10.1.2.3", b'gw";by=evil', b"for=10.1.2.3"),
        ],
    )
    def test_forwarded_names_the_caller(self, remote: str, host: bytes, value: bytes) -> None:
        """RFC 7239 section 4."""
        head = built((b"Host", host), say=Announcements(forwarded=True), remote=remote)
        assert lines(head)[-1] == b"Forwarded: " + value


class TestCallerFraming:
    @pytest.mark.parametrize(
        ("version", "length_known", "framing"),
        [
            ((1, 1), False, CallerFraming(chunked=True, until_close=False)),
            ((1, 0), False, CallerFraming(chunked=False, until_close=True)),
            ((1, 1), True, CallerFraming(chunked=False, until_close=False)),
            ((1, 0), True, CallerFraming(chunked=False, until_close=False)),
        ],
    )
    def test_who_gets_what(self, version: tuple[int, int], length_known: bool, framing: CallerFraming) -> None:
        decoders = [LengthDecoder(3), NoBody()] if length_known else [ChunkedDecoder(), UntilClose()]
        assert [caller_framing(version, decoder) for decoder in decoders] == [framing, framing]


class TestRelayedHeaders:
    def test_end_to_end_headers_stay_as_they_came(self) -> None:
        headers = (
            (b"content-type", b"text/event-stream"),
            (b"Set-Cookie", b"a=1"),
            (b"Connection", b"close, x-hop"),
            (b"X-Hop", b"1"),
            (b"Set-Cookie", b"b=2"),
            (b"transfer-encoding", b"chunked"),
            (b"Server", b"theirs"),
            (b"Date", b"today"),
            (b"request-id", b"req_1"),
            (b"X-Odd", b"\xff"),
        )
        assert relayed_headers(Exchange("GET", "/"), headers, Announcements()) == (
            (b"content-type", b"text/event-stream"),
            (b"Set-Cookie", b"a=1"),
            (b"Set-Cookie", b"b=2"),
            (b"Server", b"theirs"),
            (b"Date", b"today"),
            (b"request-id", b"req_1"),
            (b"X-Odd", b"\xff"),
        )

    def test_added_headers_replace_their_namesakes(self) -> None:
        exchange = Exchange("GET", "/")
        exchange.add_response_header("x-kgb-request-id", "ours")
        headers = ((b"X-KGB-Request-Id", b"theirs"), (b"x-kgb-request-id", b"again"), (b"A", b"1"))
        assert relayed_headers(exchange, headers, Announcements()) == ((b"A", b"1"), (b"x-kgb-request-id", b"ours"))

    def test_via_stands_last_where_it_is_configured(self) -> None:
        headers = relayed_headers(Exchange("GET", "/"), ((b"Via", b"1.1 cdn"),), Announcements(via="kgb"))
        assert headers == ((b"Via", b"1.1 cdn"), (b"Via", b"1.1 kgb"))


class TestResponseHead:
    @pytest.mark.parametrize(
        ("version", "keep_alive", "chunked", "added"),
        [
            ((1, 1), True, False, []),
            ((1, 1), False, False, [b"Connection: close"]),
            ((1, 1), True, True, [b"Transfer-Encoding: chunked"]),
            ((1, 1), False, True, [b"Transfer-Encoding: chunked", b"Connection: close"]),
            ((1, 0), False, False, []),
            ((1, 0), True, False, [b"Connection: keep-alive"]),
        ],
    )
    def test_framing_and_connection_are_this_hops(
        self, version: tuple[int, int], keep_alive: bool, chunked: bool, added: list[bytes]
    ) -> None:
        framing = CallerFraming(chunked=chunked, until_close=False)
        raw = response_head(version, 200, "OK", ((b"A", b"1"),), framing, keep_alive)
        assert lines(raw) == [b"HTTP/%d.%d 200 OK" % version, b"A: 1", *added]

    @pytest.mark.parametrize("reason", [b"", b"Odd  r\xe9ason", b"OK"])
    def test_the_reason_is_kept(self, reason: bytes) -> None:
        raw = response_head(
            (1, 1),
            299,
            reason.decode("utf-8", "surrogateescape"),
            (),
            CallerFraming(chunked=False, until_close=False),
            True,
        )
        assert raw == b"HTTP/1.1 299 " + reason + b"\r\n\r\n"


def test_interim_heads_lose_their_hop() -> None:
    raw = interim_head(103, "Early Hints", ((b"Link", b"</x>"), (b"Connection", b"x"), (b"X", b"1")))
    assert raw == b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"


def test_switching_protocols_keeps_the_upgrade() -> None:
    headers = (
        (b"Upgrade", b"websocket"),
        (b"connection", b"Upgrade"),
        (b"Sec-WebSocket-Accept", b"abc="),
        (b"sec-websocket-protocol", b"realtime"),
    )
    relayed = relayed_headers(Exchange("GET", "/"), headers, Announcements())
    assert lines(switching_head("Switching Protocols", switching_headers(relayed, headers))) == [
        b"HTTP/1.1 101 Switching Protocols",
        b"Sec-WebSocket-Accept: abc=",
        b"sec-websocket-protocol: realtime",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
    ]

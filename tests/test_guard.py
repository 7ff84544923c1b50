"""The guard: no web page, no rebound name, no ambiguous request line and no loop gets past it."""

import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from fiedler_proxy.guard import fetch_site_allowed, host_allowed, host_of, is_address, origin_allowed
from fiedler_proxy.lifecycle import Gateway, create_application
from fiedler_proxy.middlewares.guard import Guard
from fiedler_proxy.relay import Relay
from fiedler_proxy.testing import Address, RawClient, ReceivedResponse, ScriptedUpstream, respond, start_app
from fiedler_proxy.upstream import parse_upstream

Headers = list[tuple[str, str]]


class TestHostOf:
    @pytest.mark.parametrize(
        ("authority", "host"),
        [
            ("localhost", "localhost"),
            ("LocalHost:8089", "localhost"),
            ("localhost.:80", "localhost"),
            ("127.0.0.1:8089", "127.0.0.1"),
            ("[::1]:8089", "::1"),
            ("[::FFFF:127.0.0.1]", "::ffff:127.0.0.1"),
            ("gw.example.org", "gw.example.org"),
            ("gw.example.org:", "gw.example.org"),
            ("", None),
            (":80", None),
            (".", None),
            ("::1", None),
            ("[::1", None),
            ("[::1]x", None),
            ("[localhost]", None),
            ("host:port", None),
            ("host:80:80", None),
            ("user@host", None),
            ("host/path", None),
            ("host?x", None),
            ("host#x", None),
            ("host name", None),
            ("host\tx", None),
            ("a\\b", None),
            ("127.0.0.1:80\n", None),
        ],
    )
    def test_the_host_of_an_authority(self, authority: str, host: str | None) -> None:
        assert host_of(authority) == host


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", True), ("::1", True), ("fe80::1%eth0", True), ("10.1.2.3", True), ("localhost", False),
     ("127.1", False), ("2130706433", False), ("0x7f.0.0.1", False), ("127.0.0.1.example", False), ("", False)],
)  # fmt: skip
def test_which_hosts_no_dns_answer_can_rebind(host: str, address: bool) -> None:
    assert is_address(host) is address


class TestHostAllowed:
    """DNS rebinding: a name that an attacker points at us must not be served."""

    @pytest.mark.parametrize(
        "authority", ["localhost:8089", "kgb.localhost", "127.0.0.1", "[::1]:8089", "10.0.0.5:8089", "LOCALHOST."]
    )
    def test_addresses_and_localhost_need_no_listing(self, authority: str) -> None:
        assert host_allowed(authority, ())

    @pytest.mark.parametrize(
        "authority",
        [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil-localhost",
            "gw",
            "",
            "a b",
            "127.1",
        ],
    )
    def test_any_other_name_does(self, authority: str) -> None:
        assert not host_allowed(authority, ())

    @pytest.mark.parametrize(
        ("authority", "allowed", "served"),
        [
            ("gw.example.org:8089", ("gw.example.org",), True),
            ("GW.Example.org", ("gw.example.org",), True),
            ("gw.example.org", ("*.example.org",), True),
            ("a.b.example.org", ("*.example.org",), True),
            ("example.org", ("*.example.org",), False),
            ("evilexample.org", ("*.example.org",), False),
            ("gw.example.org.evil.example", ("gw.example.org", "*.example.org"), False),
            ("anything.example", ("*",), True),
            ("malformed name", ("*",), False),
        ],
    )
    def test_lists(self, authority: str, allowed: tuple[str, ...], served: bool) -> None:
        assert host_allowed(authority, allowed) is served


class TestOriginAllowed:
    @pytest.mark.parametrize("origin", ["http://127.0.0.1:8089", "https://127.0.0.1:8089", "HTTP://127.0.0.1:8089"])
    def test_our_own_pages_may(self, origin: str) -> None:
        assert origin_allowed(origin, "127.0.0.1:8089", ())

    @pytest.mark.parametrize(
        "origin",
        ["https://evil.example", "null", "", "http://127.0.0.1", "http://127.0.0.1:3000", "http://127.0.0.1:8089.evil",
         "file://", "chrome-extension://abc", "ftp://127.0.0.1:8089", "127.0.0.1:8089", "http://evil@127.0.0.1:8089"],
    )  # fmt: skip
    def test_no_other_page_may(self, origin: str) -> None:
        assert not origin_allowed(origin, "127.0.0.1:8089", ())

    def test_listed_ones_may(self) -> None:
        assert origin_allowed("https://app.example", "127.0.0.1:8089", ("https://app.example",))
        assert not origin_allowed("https://app.example:444", "127.0.0.1:8089", ("https://app.example",))
        assert origin_allowed("null", "127.0.0.1:8089", ("*",))


@pytest.mark.parametrize(
    ("site", "allowed"), [("", True), ("none", True), ("same-origin", True), ("same-site", False), ("cross-site", False),
                          ("unheard-of", False)]
)  # fmt: skip
def test_fetch_site(site: str, allowed: bool) -> None:
    assert fetch_site_allowed(site) is allowed


@contextlib.asynccontextmanager
async def guarded(upstream: str, guard: Guard) -> AsyncIterator[Address]:
    gateway = Gateway(parse_upstream(upstream))
    async with start_app(create_application(gateway, [guard], Relay(gateway))) as address:
        yield address


async def ask(address: Address, *headers: tuple[str, str], method: str = "GET", target: str = "/") -> ReceivedResponse:
    async with RawClient(address.host, address.port) as client:
        await client.request(method, target, headers)
        return await client.read_response()


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as upstream:
        yield upstream


async def assert_refused(
    upstream: ScriptedUpstream, response: ReceivedResponse, status: int, code: bytes, *, retry: bytes = b"false"
) -> None:
    assert response.status == status
    assert response.header("x-kgb-error") == code
    assert response.header("x-should-retry") == retry
    assert upstream.requests == []


class TestHostLink:
    async def test_a_rebound_name_is_refused_and_says_what_to_do(self, upstream: ScriptedUpstream) -> None:
        async with guarded(upstream.url, Guard()) as address:
            response = await ask(address, ("Host", "evil.example:8089"))
        await assert_refused(upstream, response, 403, b"host_not_allowed")
        assert b"allowed_hosts" in response.body

    @pytest.mark.parametrize("host", ["", "a b", "[::1", "h:x", "u@h"])
    async def test_a_malformed_host_is_refused(self, upstream: ScriptedUpstream, host: str) -> None:
        async with guarded(upstream.url, Guard(hosts=("*",))) as address:
            response = await ask(address, ("Host", host))
        assert response.status == 400
        assert upstream.requests == []

    @pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8089"])
    async def test_addresses_and_localhost_are_served(self, upstream: ScriptedUpstream, host: str) -> None:
        async with guarded(upstream.url, Guard()) as address:
            assert (await ask(address, ("Host", host))).status == 200

    async def test_a_listed_name_is_served_again_and_again(self, upstream: ScriptedUpstream) -> None:
        async with guarded(upstream.url, Guard(hosts=("gw.example.org",))) as address:
            for host, status in [("gw.example.org", 200), ("gw.example.org", 200), ("other.example.org", 403)]:
                assert (await ask(address, ("Host", host))).status == status

    async def test_many_hosts_do_not_fill_the_memory(self, upstream: ScriptedUpstream) -> None:
        guard = Guard()
        async with guarded(upstream.url, guard) as address, RawClient(address.host, address.port) as client:
            for number in range(600):
                await client.get("/", [("Host", f"127.0.0.1:{number + 1}")])
                assert (await client.read_response()).status == 200
        assert len(guard._known) <= 256

    async def test_no_host_is_refused_in_http_1_1_and_passes_in_1_0(self, upstream: ScriptedUpstream) -> None:
        async with guarded(upstream.url, Guard()) as address:
            async with RawClient(address.host, address.port) as client:
                await client.get("/", exact=True)
                assert (await client.read_response()).status == 400
            assert upstream.requests == []
            async with RawClient(address.host, address.port) as client:
                await client.send(b"GET / HTTP/1.0\r\n\r\n")
                assert (await client.read_response("GET")).status == 200


class TestAbsoluteForm:
    """RFC 9112 section 3.2.2: the authority of the target counts, whatever Host says."""

    async def test_a_good_host_does_not_save_a_bad_authority(self, upstream: ScriptedUpstream) -> None:
        async with guarded(upstream.url, Guard()) as address:
            response = await ask(address, ("Host", str(address)), target="http://evil.example/")
        await assert_refused(upstream, response, 403, b"host_not_allowed")

    async def test_a_bad_host_does_not_spoil_a_good_authority(self, upstream: ScriptedUpstream) -> None:
        async with guarded(upstream.url, Guard()) as address:
            response = await ask(address, ("Host", "evil.example"), target=f"http://{address}/x?y")
        assert response.status == 200
        assert upstream.requests[0].target == b"/x?y"
        assert upstream.requests[0].all("host") == [f"{upstream.host}:{upstream.port}".encode()]

    async def test_the_authority_is_what_an_origin_is_compared_with(self, upstream: ScriptedUpstream) -> None:
        async with guarded(upstream.url, Guard()) as address:
            own, evil = ("Origin", f"http://{address}"), ("Host", "127.0.0.2")
            assert (await ask(address, own, evil, target=f"http://{address}/")).status == 200
            assert (await ask(address, ("Origin", "http://127.0.0.2"), evil, target=f"http://{address}/")).status == 403


CROSS: list[Headers] = [
    [("Origin", "https://evil.example")],
    [("Origin", "null")],
    [("Origin", "http://127.0.0.1:3000")],
    [("Sec-Fetch-Site", "cross-site")],
    [("sec-fetch-site", "Same-Site")],
    [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "no-cors"), ("Sec-Fetch-Dest", "image")],
]


class TestPages:
    @pytest.mark.parametrize("headers", CROSS)
    @pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD"])
    async def test_a_foreign_page_gets_nothing(self, upstream: ScriptedUpstream, headers: Headers, method: str) -> None:
        async with guarded(upstream.url, Guard()) as address:
            response = await ask(address, *headers, method=method)
        await assert_refused(upstream, response, 403, b"origin_not_allowed")
        assert response.header("access-control-allow-origin") is None

    async def test_an_own_origin_beside_a_foreign_fetch_site_is_foreign(self, upstream: ScriptedUpstream) -> None:
        async with guarded(upstream.url, Guard()) as address:
            response = await ask(address, ("Origin", f"http://{address}"), ("Sec-Fetch-Site", "cross-site"))
        await assert_refused(upstream, response, 403, b"origin_not_allowed")

    async def test_several_origins_are_foreign(self, upstream: ScriptedUpstream) -> None:
        async with guarded(upstream.url, Guard(origins=("https://app.example",))) as address:
            own = ("Origin", f"http://{address}")
            for pair in ([own, ("Origin", "https://evil.example")], [("Origin", "https://app.example"), own]):
                await assert_refused(upstream, await ask(address, *pair), 403, b"origin_not_allowed")

    @pytest.mark.parametrize(
        "headers",
        [
            [("Sec-Fetch-Mode", "cors")],
            [("sec-fetch-mode", "cors"), ("accept-language", "*")],
            [("Sec-Fetch-Site", "none")],
            [("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Mode", "cors")],
            [("Origin", "")],
            [("Referer", "https://evil.example/")],
        ],
    )
    async def test_agents_are_no_pages(self, upstream: ScriptedUpstream, headers: Headers) -> None:
        """Node's fetch sends sec-fetch-mode alone."""
        async with guarded(upstream.url, Guard()) as address:
            assert (await ask(address, *headers, method="POST")).status == 200
        assert [pair for pair in upstream.requests[0].headers if pair[0].lower().startswith(b"sec-")] == [
            (name.encode(), value.encode()) for name, value in headers if name.lower().startswith("sec-")
        ]

    async def test_the_gateways_own_pages_may(self, upstream: ScriptedUpstream) -> None:
        async with guarded(upstream.url, Guard()) as address:
            headers = [("Origin", f"http://{address}"), ("Sec-Fetch-Site", "same-origin")]
            response = await ask(address, *headers)
        assert response.status == 200
        assert response.header("access-control-allow-origin") is None


class TestListedPages:
    PAGE = "https://app.example"

    async def test_its_preflight_is_answered_here(self, upstream: ScriptedUpstream) -> None:
        async with guarded(upstream.url, Guard(origins=(self.PAGE,))) as address:
            response = await ask(
                address,
                ("Origin", self.PAGE),
                ("Access-Control-Request-Method", "POST"),
                ("Access-Control-Request-Headers", "authorization,anthropic-version"),
                ("Sec-Fetch-Site", "cross-site"),
                method="OPTIONS",
                target="/v1/messages",
            )
        assert response.status == 204
        assert upstream.requests == []
        assert response.header("access-control-allow-origin") == self.PAGE.encode()
        assert response.header("access-control-allow-methods") == b"POST"
        assert response.header("access-control-allow-headers") == b"authorization,anthropic-version"
        assert response.header("vary") == b"Origin"

    async def test_its_requests_pass_and_its_answers_may_be_read(self) -> None:
        answer = respond(200, [("Access-Control-Allow-Origin", "https://api.example"), ("X", "1")], b"ok")
        async with ScriptedUpstream(answer) as upstream, guarded(upstream.url, Guard(origins=(self.PAGE,))) as address:
            response = await ask(address, ("Origin", self.PAGE), ("Sec-Fetch-Site", "cross-site"), method="POST")
            assert response.status == 200
            assert response.all("access-control-allow-origin") == [self.PAGE.encode()]
            assert upstream.requests[0].header("origin") == self.PAGE.encode()

    async def test_options_without_preflight_goes_upstream(self, upstream: ScriptedUpstream) -> None:
        async with guarded(upstream.url, Guard(origins=(self.PAGE,))) as address:
            assert (await ask(address, ("Origin", self.PAGE), method="OPTIONS")).status == 200
        assert upstream.requests[0].method == "OPTIONS"

    async def test_others_stay_out(self, upstream: ScriptedUpstream) -> None:
        async with guarded(upstream.url, Guard(origins=(self.PAGE,))) as address:
            for page in ("https://evil.example", "https://app.example.evil.example", "http://app.example", "null"):
                preflight = [("Origin", page), ("Access-Control-Request-Method", "POST")]
                response = await ask(address, *preflight, method="OPTIONS")
                await assert_refused(upstream, response, 403, b"origin_not_allowed")

    async def test_every_page_where_everything_is_listed(self, upstream: ScriptedUpstream) -> None:
        async with guarded(upstream.url, Guard(origins=("*",))) as address:
            response = await ask(address, ("Origin", "https://any.example"), ("Sec-Fetch-Site", "cross-site"))
        assert response.status == 200
        assert response.header("access-control-allow-origin") == b"https://any.example"


class TestRequestLine:
    @pytest.mark.parametrize(
        ("line", "status"),
        [
            (b"GET / HTTP/0.9", 400),
            (b"GET / HTTP/1.2", 400),
            (b"GET / HTTP/2.0", 400),
            (b"GET /", 400),
            (b"CONNECT api.anthropic.com:443 HTTP/1.1", 501),
            (b"GET /a#b HTTP/1.1", 400),
            (b"GET /caf\xe9 HTTP/1.1", 400),
            (b"GET * HTTP/1.1", 400),
            (b"GET x HTTP/1.1", 400),
        ],
    )
    async def test_what_is_not_spoken_here(self, upstream: ScriptedUpstream, line: bytes, status: int) -> None:
        async with guarded(upstream.url, Guard()) as address, RawClient(address.host, address.port) as client:
            await client.send(line + b"\r\nHost: 127.0.0.1\r\n\r\n")
            assert (await client.read_response("GET")).status == status
            await client.closed()
        assert upstream.requests == []


class TestLoops:
    """A gateway whose upstream is itself: 508, and no header is added for that anywhere."""

    @contextlib.asynccontextmanager
    async def looping(self, *, host: str = "127.0.0.1", unix: str = "") -> AsyncIterator[RawClient]:
        sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET6 if ":" in host else socket.AF_INET)
        if ":" in host:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(unix or (host, 0))
        port = 0 if unix else sock.getsockname()[1]
        gateway = Gateway(parse_upstream(f"unix:{unix}" if unix else f"http://127.0.0.1:{port}"))
        runner = web.AppRunner(create_application(gateway, [Guard()], Relay(gateway)), access_log=None)
        await runner.setup()
        try:
            await web.SockSite(runner, sock).start()
            async with RawClient("127.0.0.1", port, unix=unix or None) as client:
                yield client
        finally:
            await runner.cleanup()

    @staticmethod
    async def assert_loop(client: RawClient) -> None:
        await client.post("/v1/messages", [("anthropic-version", "2023-06-01")], b"{}")
        response = await client.read_response()
        assert response.status == 508
        assert response.header("x-kgb-error") == b"loop"
        assert response.header("x-should-retry") == b"false"
        assert b"upstream" in response.body

    async def test_over_tcp(self) -> None:
        async with self.looping() as client:
            await self.assert_loop(client)
            await self.assert_loop(client)

    async def test_over_a_socket_that_serves_both_families(self) -> None:
        """The caller's address then reads ::ffff:127.0.0.1."""
        async with self.looping(host="::") as client:
            await self.assert_loop(client)

    async def test_over_a_unix_socket(self, tmp_path: Path) -> None:
        async with self.looping(unix=str(tmp_path / "gw.sock")) as client:
            await self.assert_loop(client)

    async def test_an_honest_chain_of_gateways_is_no_loop(self, upstream: ScriptedUpstream) -> None:
        async with guarded(upstream.url, Guard()) as inner, guarded(inner.url, Guard()) as outer:
            assert (await ask(outer)).status == 200
        assert [name for name, _ in upstream.requests[0].headers] == [b"Host"]

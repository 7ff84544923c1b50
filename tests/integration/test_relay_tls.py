"""Upstreams behind TLS: who is trusted, whose name is asked for, and what a caller hears when it fails."""

import json
import os
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest
import trustme

from fiedler_proxy import pool as pool_module
from fiedler_proxy.exchange import Outcome
from fiedler_proxy.testing import (
    Abort,
    BrokenResponse,
    Close,
    Garbage,
    ReadHead,
    ReceivedRequest,
    ReceivedResponse,
    ScriptedUpstream,
    Send,
    Stall,
    UpstreamConnection,
    respond,
    serve_forever,
)
from fiedler_proxy.upstream import Timeouts, Upstream, parse_upstream

from .helpers import Serving, relaying

BOTH_LOOPS = True

NAME = "api.example.test"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


@attrs.define
class Authority:
    """A private CA, its file, and the server contexts it vouches for. ``asked``: names seen in SNI."""

    ca: trustme.CA
    file: str
    asked: list[str | None] = attrs.field(factory=list)

    @classmethod
    def new(cls, directory: Path) -> "Authority":
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(directory / "ca.pem"))
        return cls(ca, str(directory / "ca.pem"))

    def server(self, *names: str, until: datetime | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names, not_after=until).configure_cert(context)
        context.sni_callback = self._heard
        return context

    def _heard(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        self.asked.append(name)


@pytest.fixture(scope="module")
def shared_ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.new(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def authority(shared_ca: Authority) -> Authority:
    shared_ca.asked.clear()
    return shared_ca


@pytest.fixture(autouse=True)
def resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name leads to this machine."""

    async def resolve(loop: object, host: str, port: int) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))]

    monkeypatch.setattr(pool_module, "_resolve", resolve)


def at(upstream: ScriptedUpstream, ca_file: str = "", *, host: str = NAME, server_name: str = "") -> Upstream:
    return parse_upstream(f"https://{host}:{upstream.port}", ca_file=ca_file, server_name=server_name)


async def ask(serving: Serving) -> ReceivedResponse:
    async with serving.caller() as client:
        await client.get("/v1/models", [("anthropic-version", "2023-06-01")])
        return await client.read_response()


def assert_tls_failure(response: ReceivedResponse, text: str) -> None:
    assert response.status == 502
    assert response.header("x-kgb-error") == b"upstream_tls"
    assert response.header("x-should-retry") == b"false"
    error = json.loads(response.body)["error"]
    assert error["type"] == "api_error"
    assert text in error["message"]


class TestTrust:
    async def test_a_private_ca_given_as_ca_file(self, authority: Authority) -> None:
        async with ScriptedUpstream(respond(body=b"safe"), ssl=authority.server(NAME)) as upstream:
            async with relaying(at(upstream, authority.file)) as serving:
                assert (await ask(serving)).body == b"safe"
                assert upstream.requests[0].header("host") == f"{NAME}:{upstream.port}".encode()

    async def test_the_systems_cas_without_ca_file(self, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
        async with ScriptedUpstream(ssl=authority.server(NAME)) as upstream:
            async with relaying(at(upstream)) as serving:
                assert_tls_failure(await ask(serving), "certificate")
            monkeypatch.setenv("SSL_CERT_FILE", authority.file)
            async with relaying(at(upstream)) as serving:
                assert (await ask(serving)).status == 200

    async def test_another_ca_is_not_trusted(self, authority: Authority, tmp_path: Path) -> None:
        other = Authority.new(tmp_path)
        async with ScriptedUpstream(ssl=authority.server(NAME)) as upstream:
            async with relaying(at(upstream, other.file)) as serving:
                assert_tls_failure(await ask(serving), "ca_file")
                assert await serving.records.outcome() is Outcome.UPSTREAM_BROKE
                assert serving.pool.open == 0
            assert upstream.requests == []

    async def test_a_ca_file_replaces_the_systems_cas(
        self, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", authority.file)
        other = Authority.new(tmp_path)
        async with ScriptedUpstream(ssl=authority.server(NAME)) as upstream:
            async with relaying(at(upstream, other.file)) as serving:
                assert_tls_failure(await ask(serving), "certificate")

    async def test_an_expired_certificate(self, authority: Authority) -> None:
        yesterday = datetime.now(UTC) - timedelta(days=1)
        async with ScriptedUpstream(ssl=authority.server(NAME, until=yesterday)) as upstream:
            async with relaying(at(upstream, authority.file)) as serving:
                assert_tls_failure(await ask(serving), "expired")

    async def test_a_certificate_of_another_name(self, authority: Authority) -> None:
        async with ScriptedUpstream(ssl=authority.server("other.example.test")) as upstream:
            async with relaying(at(upstream, authority.file)) as serving:
                assert_tls_failure(await ask(serving), NAME)
            assert upstream.requests == []


class TestNames:
    async def test_sni_names_the_host(self, authority: Authority) -> None:
        async with ScriptedUpstream(ssl=authority.server(NAME)) as upstream:
            async with relaying(at(upstream, authority.file)) as serving:
                assert (await ask(serving)).status == 200
        assert authority.asked == [NAME]

    async def test_an_address_is_checked_and_not_named_in_sni(self, authority: Authority) -> None:
        async with ScriptedUpstream(ssl=authority.server("127.0.0.1")) as upstream:
            async with relaying(at(upstream, authority.file, host="127.0.0.1")) as serving:
                assert (await ask(serving)).status == 200
        assert authority.asked == [None]

    async def test_server_name_replaces_the_host_in_sni_and_check(self, authority: Authority) -> None:
        async with ScriptedUpstream(ssl=authority.server(NAME)) as upstream:
            async with relaying(at(upstream, authority.file, host="127.0.0.1", server_name=NAME)) as serving:
                assert (await ask(serving)).status == 200
                assert upstream.requests[0].header("host") == f"127.0.0.1:{upstream.port}".encode()
            async with relaying(at(upstream, authority.file, server_name="other.example.test")) as serving:
                assert_tls_failure(await ask(serving), "other.example.test")
        assert authority.asked == [NAME, "other.example.test"]

    async def test_http_1_1_is_asked_for(self, authority: Authority) -> None:
        """ALPN (RFC 7301): an upstream that would rather speak h2 must not begin to."""
        context = authority.server(NAME)
        context.set_alpn_protocols(["h2", "http/1.1"])
        async with ScriptedUpstream(ssl=context) as upstream, relaying(at(upstream, authority.file)) as serving:
            assert (await ask(serving)).status == 200
            spoken = upstream.connections[0].peer.transport.get_extra_info("ssl_object")
            assert spoken.selected_alpn_protocol() == "http/1.1"


class TestHandshake:
    @pytest.mark.parametrize(
        "steps",
        [
            [Garbage()],
            [Send(b"HTTP/1.1 400 Bad Request\r\n\r\nThe plain HTTP request was sent to HTTPS port")],
            [Send(b"\x15\x03\x01\x00\x02\x02\x28")],  # the alert "handshake failure"
        ],
        ids=["garbage", "plain HTTP", "alert"],
    )
    async def test_what_is_no_handshake(self, authority: Authority, steps: list[Send | Garbage]) -> None:
        async with ScriptedUpstream([*steps, Stall()]) as upstream:
            async with relaying(at(upstream, authority.file)) as serving:
                assert_tls_failure(await ask(serving), "handshake")
                assert serving.pool.open == 0

    @pytest.mark.parametrize("step", [Close(), Abort()], ids=["closed", "reset"])
    async def test_a_connection_that_ends_in_the_handshake(self, authority: Authority, step: Close | Abort) -> None:
        async with ScriptedUpstream([step]) as upstream, relaying(at(upstream, authority.file)) as serving:
            response = await ask(serving)
            assert response.status == 502
            assert response.header("x-kgb-error") in (b"upstream_reset", b"upstream_tls")
            assert serving.pool.open == 0

    async def test_a_handshake_that_takes_too_long(self, authority: Authority) -> None:
        async with ScriptedUpstream([Stall()]) as upstream:
            target = attrs.evolve(at(upstream, authority.file), timeouts=Timeouts(connect=0.05))
            async with relaying(target) as serving:
                response = await ask(serving)
                assert response.status == 504
                assert response.header("x-kgb-error") == b"connect_timeout"
                assert await serving.records.outcome() is Outcome.TIMED_OUT
                assert serving.pool.open == 0
                assert await upstream.connections[0].closed() in (True, False)

    async def test_a_plain_upstream_that_got_tls(self) -> None:
        """The other way round: http:// in front of a TLS port."""
        async with ScriptedUpstream([ReadHead(), Send(b"\x15\x03\x03\x00\x02\x02\x46"), Stall()]) as upstream:
            async with relaying(upstream) as serving:
                response = await ask(serving)
                assert response.status == 502
                assert response.header("x-kgb-error") == b"upstream_garbage"


class TestRelaying:
    async def test_a_connection_is_reused(self, authority: Authority) -> None:
        async with ScriptedUpstream(ssl=authority.server(NAME)) as upstream:
            async with relaying(at(upstream, authority.file)) as serving:
                for _ in range(3):
                    assert (await ask(serving)).status == 200
                    await serving.settled(1)
                assert len(upstream.connections) == 1

    async def test_large_bodies_pass_both_ways(self, authority: Authority) -> None:
        @serve_forever
        async def echo(request: ReceivedRequest, conn: UpstreamConnection) -> None:
            await conn.send_response(200, body=await request.body())

        body = bytes(range(256)) * 8192
        async with ScriptedUpstream(echo, ssl=authority.server(NAME)) as upstream:
            async with relaying(at(upstream, authority.file)) as serving, serving.caller() as client:
                await client.post("/", body=body)
                assert (await client.read_response()).body == body

    async def test_every_flush_arrives_before_the_next(self, authority: Authority) -> None:
        @serve_forever
        async def drip(request: ReceivedRequest, conn: UpstreamConnection) -> None:
            await conn.send_head(200, [("Transfer-Encoding", "chunked")])
            await conn.chunk(b"one")
            await request.read_some()
            await conn.chunk(b"two")
            await conn.end_chunks()

        async with ScriptedUpstream(drip, ssl=authority.server(NAME)) as upstream:
            async with relaying(at(upstream, authority.file)) as serving, serving.caller() as client:
                await client.post("/", [("Transfer-Encoding", "chunked")])
                await client.read_head()
                assert await client.read_chunk() == b"one"
                await client.send(b"1\r\nx\r\n0\r\n\r\n")
                assert await client.read_chunk() == b"two"
                assert await client.read_chunk() == b""

    async def test_a_caller_who_leaves_ends_the_upstream(self, authority: Authority) -> None:
        async with ScriptedUpstream([ReadHead(), Stall()], ssl=authority.server(NAME)) as upstream:
            async with relaying(at(upstream, authority.file)) as serving, serving.caller() as client:
                await client.get("/")
                await upstream.wait_for_requests(1)
                client.close()
                await upstream.connections[0].closed()
                assert await serving.records.outcome() is Outcome.CALLER_LEFT


class TestEnds:
    """A body that ends with its connection is whole only where TLS itself said so (RFC 9112 section 9.8)."""

    async def test_with_close_notify_it_is_whole(self, authority: Authority) -> None:
        steps = [ReadHead(), Send(HEAD + b"\r\nall of it"), Close()]
        async with ScriptedUpstream(steps, ssl=authority.server(NAME)) as upstream:
            async with relaying(at(upstream, authority.file)) as serving:
                assert (await ask(serving)).body == b"all of it"
                assert await serving.records.outcome() is Outcome.COMPLETED

    @pytest.mark.parametrize("framing", [b"", b"Content-Length: 100\r\n", b"Transfer-Encoding: chunked\r\n"])
    async def test_trap_without_close_notify_it_is_broken(self, authority: Authority, framing: bytes) -> None:
        async def cut(conn: UpstreamConnection) -> None:
            await conn.request()
            await conn.send(HEAD + framing + b"\r\n" + (b"4\r\n" if b"chunked" in framing else b"") + b"some")
            # FIN below TLS: an attacker in the middle can do that, a server that has finished does not.
            with socket.socket(fileno=os.dup(conn.peer.transport.get_extra_info("socket").fileno())) as below:
                below.shutdown(socket.SHUT_WR)
            await conn.stall()

        async with ScriptedUpstream(cut, ssl=authority.server(NAME), ignore_errors=True) as upstream:
            async with relaying(at(upstream, authority.file)) as serving:
                with pytest.raises(BrokenResponse) as caught:
                    await ask(serving)
                assert caught.value.received == b"some"
                assert await serving.records.outcome() is Outcome.UPSTREAM_BROKE

    async def test_a_reset_is_broken(self, authority: Authority) -> None:
        steps = [ReadHead(), Send(HEAD + b"\r\nsome"), Stall()]
        async with ScriptedUpstream(steps, ssl=authority.server(NAME)) as upstream:
            async with relaying(at(upstream, authority.file)) as serving, serving.caller() as client:
                await client.get("/")
                await client.read_head()
                assert await client.read_some() == b"some"
                upstream.connections[0].abort()
                with pytest.raises(BrokenResponse):
                    await client.read_body()
                assert await serving.records.outcome() is Outcome.UPSTREAM_BROKE

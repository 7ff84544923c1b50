"""Health is answered here, and is true: nothing is healthy that could not be reached just now."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from fiedler_proxy.lifecycle import Gateway, create_application
from fiedler_proxy.middlewares import health as module
from fiedler_proxy.middlewares.health import Health
from fiedler_proxy.relay import Relay
from fiedler_proxy.testing import (
    Address,
    RawClient,
    ReceivedRequest,
    ReceivedResponse,
    Rendezvous,
    ScriptedUpstream,
    UpstreamConnection,
    serve_forever,
    start_app,
)
from fiedler_proxy.upstream import PoolLimits, parse_upstream


@contextlib.asynccontextmanager
async def serving(
    url: str, health: Health | None = None, *, limits: PoolLimits | None = None
) -> AsyncIterator[tuple[Gateway, Address]]:
    gateway = Gateway(parse_upstream(url, limits=limits))
    app = create_application(gateway, [health or Health()], Relay(gateway))
    async with start_app(app) as address:
        yield gateway, address


async def ask(address: Address, target: str, method: str = "GET") -> ReceivedResponse:
    async with RawClient(address.host, address.port) as client:
        await client.request(method, target)
        return await client.read_response()


def document(response: ReceivedResponse) -> dict[str, Any]:
    assert response.header("content-type") == b"application/json"
    parsed = json.loads(response.body)
    assert isinstance(parsed, dict)
    return parsed


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Findings are not kept."""
    monkeypatch.setattr(module, "PROBE_KEPT", 0.0)


@pytest.fixture
def refusing() -> Iterator[str]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


class TestHealth:
    async def test_an_upstream_that_can_be_reached(self) -> None:
        async with ScriptedUpstream() as upstream, serving(upstream.url) as (_, address):
            response = await ask(address, "/health")
            assert response.status == 200
            assert document(response) == {
                "status": "healthy",
                "gateway": "kgb_gateway",
                "upstream": upstream.url,
                "upstream_reachable": True,
                "live_exchanges": 0,
            }
            assert upstream.requests == []

    async def test_an_upstream_that_refuses(self, refusing: str) -> None:
        async with serving(refusing) as (_, address):
            response = await ask(address, "/health")
        assert response.status == 503
        found = document(response)
        assert found["status"] == "unhealthy"
        assert found["upstream_reachable"] is False
        assert found["upstream_error"] == "upstream_refused"

    async def test_an_upstream_that_accepts_nothing_in_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "PROBE_SECONDS", 0.02)
        async with ScriptedUpstream() as upstream, serving(upstream.url) as (gateway, address):

            async def hang() -> None:
                await asyncio.Event().wait()

            monkeypatch.setattr(gateway.pool(gateway.upstream), "probe", hang)
            assert document(await ask(address, "/health"))["upstream_error"] == "connect_timeout"

    @pytest.mark.usefixtures("fresh")
    async def test_it_follows_the_upstream(self) -> None:
        async with ScriptedUpstream() as upstream, serving(upstream.url) as (_, address):
            assert (await ask(address, "/health")).status == 200
            await upstream.stop()
            assert (await ask(address, "/health")).status == 503
            async with ScriptedUpstream(port=upstream.port):
                assert (await ask(address, "/health")).status == 200

    async def test_a_finding_is_kept_so_that_probes_cost_the_upstream_nothing(self) -> None:
        async with ScriptedUpstream() as upstream, serving(upstream.url) as (gateway, address):
            for _ in range(5):
                assert (await ask(address, "/health")).status == 200
            assert gateway.pool(gateway.upstream).dialled == 1

    async def test_many_probes_at_once_ask_once(self) -> None:
        async with ScriptedUpstream() as upstream, serving(upstream.url) as (gateway, address):
            responses = await asyncio.gather(*(ask(address, "/health") for _ in range(10)))
            assert {response.status for response in responses} == {200}
            assert gateway.pool(gateway.upstream).dialled == 1

    async def test_a_bad_finding_is_kept_as_well(self, refusing: str) -> None:
        async with serving(refusing) as (gateway, address):
            for _ in range(3):
                assert (await ask(address, "/health")).status == 503
            assert gateway.pool(gateway.upstream).dialled == 1

    async def test_head_is_answered_without_body(self) -> None:
        async with ScriptedUpstream() as upstream, serving(upstream.url) as (_, address):
            response = await ask(address, "/health", "HEAD")
            assert response.status == 200
            assert response.body == b""
            assert upstream.requests == []

    async def test_the_query_does_not_matter(self) -> None:
        async with ScriptedUpstream() as upstream, serving(upstream.url) as (_, address):
            assert document(await ask(address, "/health?probe=1"))["status"] == "healthy"

    async def test_live_exchanges_are_counted(self) -> None:
        points = Rendezvous()

        @serve_forever
        async def hold(request: ReceivedRequest, conn: UpstreamConnection) -> None:
            await points.wait("was counted")
            await conn.send_response()

        async with ScriptedUpstream(hold) as upstream, serving(upstream.url) as (_, address):
            async with RawClient(address.host, address.port) as client:
                await client.get("/")
                await upstream.wait_for_requests(1)
                assert document(await ask(address, "/health"))["live_exchanges"] == 1
                points.reach("was counted")
                await client.read_response()

    @pytest.mark.usefixtures("fresh")
    async def test_a_busy_upstream_is_not_an_unhealthy_one(self) -> None:
        """All connections are in use and nobody else may have one: the probe still sees that it is there."""
        points = Rendezvous()

        @serve_forever
        async def hold(request: ReceivedRequest, conn: UpstreamConnection) -> None:
            await points.wait("was asked")
            await conn.send_response()

        limits = PoolLimits(connections=1, queue=0)
        async with ScriptedUpstream(hold) as upstream, serving(upstream.url, limits=limits) as (_, address):
            async with RawClient(address.host, address.port) as client:
                await client.get("/")
                await upstream.wait_for_requests(1)
                assert (await ask(address, "/health")).status == 200
                points.reach("was asked")
                assert (await client.read_response()).status == 200


class TestLiveAndReady:
    async def test_they_do_not_depend_on_the_upstream(self, refusing: str) -> None:
        async with serving(refusing) as (gateway, address):
            live, ready = await ask(address, "/healthz"), await ask(address, "/readyz")
            assert (live.status, document(live)) == (200, {"status": "alive"})
            assert (ready.status, document(ready)) == (200, {"status": "ready"})
            assert not list(gateway.pools)

    async def test_a_draining_gateway_is_alive_but_takes_no_new_work(self) -> None:
        async with ScriptedUpstream() as upstream, serving(upstream.url) as (gateway, address):
            gateway.draining = True
            assert (await ask(address, "/healthz")).status == 200
            ready = await ask(address, "/readyz")
            assert (ready.status, document(ready)) == (503, {"status": "draining"})
            assert ready.header("connection") == b"close"
            found = await ask(address, "/health")
            assert (found.status, document(found)["status"]) == (503, "draining")


class TestPaths:
    MOVED = Health(health="/-/health", live="", ready="/-/ready", gateway="fiedler_proxy")

    async def test_moved_paths_are_answered_and_the_old_ones_go_upstream(self) -> None:
        async with ScriptedUpstream() as upstream, serving(upstream.url, self.MOVED) as (_, address):
            assert document(await ask(address, "/-/health"))["gateway"] == "fiedler_proxy"
            assert document(await ask(address, "/-/ready")) == {"status": "ready"}
            assert upstream.requests == []
            for path in ("/health", "/healthz", "/readyz"):
                await ask(address, path)
            assert [request.target for request in upstream.requests] == [b"/health", b"/healthz", b"/readyz"]

    @pytest.mark.parametrize(
        ("method", "target"),
        [("POST", "/health"), ("DELETE", "/healthz"), ("OPTIONS", "/readyz"), ("GET", "/health/"), ("GET", "//health"),
         ("GET", "/%68ealth"), ("GET", "/HEALTH"), ("GET", "/v1/health"), ("OPTIONS", "*")],
    )  # fmt: skip
    async def test_whatever_is_not_exactly_ours_goes_upstream(self, method: str, target: str) -> None:
        async with ScriptedUpstream() as upstream, serving(upstream.url, Health()) as (_, address):
            await ask(address, target, method)
            assert [(request.method, request.target) for request in upstream.requests] == [(method, target.encode())]

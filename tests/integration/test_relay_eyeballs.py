"""Names with several addresses (RFC 8305): one that answers is found, whatever the others do."""

import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from fiedler_proxy import pool as pool_module
from fiedler_proxy.exchange import Outcome
from fiedler_proxy.testing import RawClient, ReceivedResponse, ScriptedUpstream
from fiedler_proxy.upstream import Timeouts

from .helpers import Serving, relaying

BOTH_LOOPS = True

Resolver = Callable[..., None]


def _serves_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        return True
    return False


needs_ipv6 = pytest.mark.skipif(not _serves_ipv6(), reason="this machine has no ::1")


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    """``resolve("127.0.0.2", "127.0.0.1")``: what every name leads to, in this order."""

    def set_addresses(*addresses: str) -> None:
        async def resolver(loop: object, host: str, port: int) -> list[object]:
            return [
                (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port, 0, 0))
                if ":" in address
                else (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))
                for address in addresses
            ]

        monkeypatch.setattr(pool_module, "_resolve", resolver)

    return set_addresses


async def ask(serving: Serving) -> ReceivedResponse:
    async with serving.caller() as client:
        await client.get("/")
        return await client.read_response()


@needs_ipv6
@pytest.mark.parametrize("listening", ["::1", "127.0.0.1"])
@pytest.mark.parametrize("order", [("::1", "127.0.0.1"), ("127.0.0.1", "::1")])
async def test_localhost_that_listens_on_one_family_alone(
    resolve: Resolver, listening: str, order: tuple[str, str]
) -> None:
    resolve(*order)
    async with ScriptedUpstream(host=listening) as upstream:
        async with relaying(f"http://localhost:{upstream.port}") as serving:
            assert (await ask(serving)).status == 200
            assert upstream.requests[0].header("host") == f"localhost:{upstream.port}".encode()
            assert serving.pool.open == 1


async def test_localhost_is_resolved_by_the_system() -> None:
    async with ScriptedUpstream(host="127.0.0.1") as upstream:
        async with relaying(f"http://localhost:{upstream.port}") as serving:
            assert (await ask(serving)).status == 200


class FakeLoop:
    """A loop whose resolver finds ``addresses``."""

    def __init__(self, addresses: list[object]) -> None:
        self.asked: list[tuple[object, ...]] = []
        self._addresses = addresses

    async def getaddrinfo(self, host: str, port: int, *, type: int, flags: int) -> list[object]:  # noqa: A002
        self.asked.append((host, port, type, flags))
        return self._addresses


@pytest.mark.parametrize(
    ("host", "flags"),
    [("localhost", 0), ("kgb.localhost", 0), ("127.0.0.1", 0), ("::1", 0), ("api.example", socket.AI_ADDRCONFIG)],
)
async def test_loopback_addresses_are_not_hidden(host: str, flags: int) -> None:
    """AI_ADDRCONFIG would hide ::1 on a machine whose only IPv6 address it is (getaddrinfo(3))."""
    loop = FakeLoop(["an address"])
    assert await pool_module._resolve(loop, host, 80) == ["an address"]  # type: ignore[arg-type]
    assert loop.asked == [(host, 80, socket.SOCK_STREAM, flags)]


@needs_ipv6
async def test_an_ipv6_address_in_the_url() -> None:
    async with ScriptedUpstream(host="::1") as upstream, relaying(upstream) as serving:
        assert (await ask(serving)).status == 200
        assert upstream.requests[0].header("host") == f"[::1]:{upstream.port}".encode()


async def test_localhost_where_nobody_listens_is_refused() -> None:
    """Two addresses refuse: the caller hears of a refusal, not of a riddle."""
    async with ScriptedUpstream() as gone:
        port = gone.port
    async with relaying(f"http://localhost:{port}") as serving:
        response = await ask(serving)
        assert (response.status, response.header("x-kgb-error")) == (502, b"upstream_refused")
        assert serving.pool.open == 0


async def test_the_first_address_refuses(resolve: Resolver) -> None:
    resolve("127.0.0.2", "127.0.0.3", "127.0.0.1")
    async with ScriptedUpstream(host="127.0.0.1") as upstream:
        async with relaying(f"http://many.example:{upstream.port}") as serving:
            assert (await ask(serving)).status == 200
            assert len(upstream.connections) == 1
            assert serving.pool.open == 1


@pytest.fixture
def deaf() -> Iterator[tuple[str, int]]:
    """An address and port that never answer: the queue of a listening socket is full, further SYNs are dropped."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.2", 0))
        listening.listen(0)
        address = listening.getsockname()
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            assert filler.connect_ex(address) in (0, errno.EINPROGRESS)
        yield address


@contextlib.asynccontextmanager
async def at_port(port: int) -> AsyncIterator[ScriptedUpstream]:
    try:
        upstream = await ScriptedUpstream(host="127.0.0.1", port=port).__aenter__()
    except OSError:
        pytest.skip(f"port {port} of 127.0.0.1 is taken")
    try:
        yield upstream
    finally:
        await upstream.stop()


async def test_the_first_address_never_answers(
    resolve: Resolver, deaf: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "HAPPY_EYEBALLS_DELAY", 0.01)
    resolve("127.0.0.2", "127.0.0.1")
    async with at_port(deaf[1]) as upstream, relaying(f"http://many.example:{deaf[1]}") as serving:
        assert (await ask(serving)).status == 200
        assert len(upstream.connections) == 1
        assert serving.pool.open == 1


async def test_no_address_ever_answers(resolve: Resolver, deaf: tuple[str, int]) -> None:
    resolve("127.0.0.2")
    url = f"http://many.example:{deaf[1]}"
    async with relaying(url, timeouts=Timeouts(connect=0.05)) as serving:
        response = await ask(serving)
        assert (response.status, response.header("x-kgb-error")) == (504, b"connect_timeout")
        assert await serving.records.outcome() is Outcome.TIMED_OUT
        assert serving.pool.open == 0


async def test_a_caller_who_leaves_while_we_dial_ends_the_dialling(resolve: Resolver, deaf: tuple[str, int]) -> None:
    resolve("127.0.0.2")
    async with relaying(f"http://many.example:{deaf[1]}") as serving:
        async with RawClient(serving.address.host, serving.address.port) as client:
            await client.get("/")
            await serving.records.begun()
            client.abort()
        assert await serving.records.outcome() is Outcome.CALLER_LEFT
        assert serving.pool.open == 0


async def test_a_name_without_any_address() -> None:
    with pytest.raises(socket.gaierror):
        await pool_module._resolve(FakeLoop([]), "none.example", 80)  # type: ignore[arg-type]

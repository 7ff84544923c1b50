"""``kgb serve`` and ``fiedler serve`` as processes of their own: start, signals, draining, and faults of the start."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anthropic
import attrs
import pytest

from fiedler_proxy.testing import (
    BrokenResponse,
    RawClient,
    ReceivedRequest,
    Rendezvous,
    ScriptedUpstream,
    UpstreamConnection,
    respond,
    serve_forever,
)
from fiedler_proxy.testing.rendezvous import GUARD

CHUNKED = [(b"Transfer-Encoding", b"chunked")]
START_GUARD = 30.0
LISTENING = re.compile(r"listening on https?://127\.0\.0\.1:(\d+)")


@attrs.define(eq=False)
class Server:
    """A started process. ``said`` holds its standard error so far, line by line."""

    process: asyncio.subprocess.Process
    port: int = 0
    said: list[str] = attrs.field(factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def caller(self) -> RawClient:
        return RawClient("127.0.0.1", self.port)

    async def says(self, words: str) -> str:
        """Read standard error up to the line that holds ``words``."""
        assert self.process.stderr is not None
        async with asyncio.timeout(START_GUARD):
            while line := (await self.process.stderr.readline()).decode():
                self.said.append(line.rstrip("\n"))
                if words in line:
                    return self.said[-1]
        raise AssertionError(f"{words!r} was never said: {self.said}")

    async def ended(self) -> tuple[int, list[dict[str, object]]]:
        """Wait for the end: the exit status and the access lines."""
        async with asyncio.timeout(START_GUARD):
            out, err = await self.process.communicate()
        self.said += err.decode().splitlines()
        assert self.process.returncode is not None
        return self.process.returncode, [json.loads(line) for line in out.splitlines()]


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a child: nothing of ours that would set something."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
    return {**kept, "HOME": str(home), "XDG_DATA_HOME": str(home), "PYTHONWARNINGS": "error", **more}


async def spawn(home: Path, *argv: str, module: str = "kgb_gateway", **more: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    env = environment(home, **more)
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *argv, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=env
    )


@contextlib.asynccontextmanager
async def serving(home: Path, *argv: str, module: str = "kgb_gateway", **more: str) -> AsyncIterator[Server]:
    """``serve`` on a free port; killed at the end where it still runs."""
    server = Server(await spawn(home, "serve", "--port", "0", *argv, module=module, **more))
    try:
        found = LISTENING.search(await server.says("listening on"))
        assert found is not None
        server.port = int(found[1])
        yield server
    finally:
        if server.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                server.process.kill()
            await server.process.communicate()


async def outcome_of(home: Path, *argv: str, module: str = "kgb_gateway", **more: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command that ends by itself."""
    process = await spawn(home, *argv, module=module, **more)
    async with asyncio.timeout(START_GUARD):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def two_parts(points: Rendezvous) -> ScriptedUpstream:
    """An upstream that sends ``one``, and ``two`` when its path (without slash) was reached as a point."""

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_head(200, CHUNKED)
        await conn.chunk(b"one")
        await points.wait(request.target.decode().strip("/"))
        await conn.chunk(b"two")
        await conn.end_chunks()

    return ScriptedUpstream(script)


LOOPS = pytest.mark.parametrize("loop", [(), ("--no-uvloop",)], ids=["default", "asyncio"])


class TestDrain:
    @LOOPS
    async def test_an_open_stream_finishes(self, tmp_path: Path, loop: tuple[str, ...]) -> None:
        points = Rendezvous()
        async with two_parts(points) as upstream, serving(tmp_path, "--upstream", upstream.url, *loop) as server:
            async with server.caller() as caller:
                await caller.get("/go")
                await caller.read_head()
                await caller.read_until(b"one")
                server.process.send_signal(signal.SIGTERM)
                await server.says("1 open exchanges have 120 s to finish")
                with pytest.raises(ConnectionRefusedError):
                    async with server.caller():
                        pass
                points.reach("go")
                assert await caller.read_body() == b"two"
            status, lines = await server.ended()
        assert status == 0
        assert [line["outcome"] for line in lines] == ["completed"]
        assert any("every exchange had finished" in line for line in server.said)

    @LOOPS
    async def test_beyond_the_limit_it_is_cut_and_looks_cut(self, tmp_path: Path, loop: tuple[str, ...]) -> None:
        config = tmp_path / "gateway.toml"
        config.write_text("[timeouts]\ndrain = 0.1\n")
        points = Rendezvous()
        argv = ("--config", str(config), *loop)
        async with two_parts(points) as upstream, serving(tmp_path, "--upstream", upstream.url, *argv) as server:
            async with server.caller() as caller:
                await caller.get("/never")
                await caller.read_head()
                await caller.read_until(b"one")
                server.process.send_signal(signal.SIGTERM)
                with pytest.raises(BrokenResponse):
                    await caller.read_body()
            status, lines = await server.ended()
        assert status == 0
        assert [line["outcome"] for line in lines] == ["gateway_stopped"]
        assert any("1 exchanges were cut" in line for line in server.said)

    @pytest.mark.parametrize("signals", [("TERM", "TERM"), ("INT", "INT"), ("TERM", "INT")])
    async def test_a_second_signal_stops_at_once(self, tmp_path: Path, signals: tuple[str, str]) -> None:
        points = Rendezvous()
        first, second = (getattr(signal, f"SIG{name}") for name in signals)
        async with two_parts(points) as upstream, serving(tmp_path, "--upstream", upstream.url) as server:
            async with server.caller() as caller:
                await caller.get("/never")
                await caller.read_head()
                await caller.read_until(b"one")
                server.process.send_signal(first)
                await server.says("a second signal ends them at once")
                server.process.send_signal(second)
                with pytest.raises(BrokenResponse):
                    await caller.read_body()
            status, lines = await server.ended()
        assert status == 0
        assert [line["outcome"] for line in lines] == ["gateway_stopped"]

    @LOOPS
    async def test_readiness_goes_and_idle_connections_with_it(self, tmp_path: Path, loop: tuple[str, ...]) -> None:
        points = Rendezvous()
        async with two_parts(points) as upstream, serving(tmp_path, "--upstream", upstream.url, *loop) as server:
            async with server.caller() as idle, server.caller() as kept, server.caller() as other:
                await idle.get("/readyz")
                assert (await idle.read_response()).status == 200
                for caller, target in ((kept, "/first"), (other, "/second")):
                    await caller.get(target)
                    await caller.read_head()
                    await caller.read_until(b"one")
                server.process.send_signal(signal.SIGTERM)
                assert await idle.closed() is False
                await server.says("2 open exchanges")
                points.reach("first")
                assert await kept.read_body() == b"two"
                # Its answer had announced that the connection stays: so one more request may come.
                await kept.get("/readyz")
                answer = await kept.read_response()
                assert answer.status == 503
                assert json.loads(answer.body) == {"status": "draining"}
                assert (b"Connection", b"close") in answer.headers
                points.reach("second")
                assert await other.read_body() == b"two"
            status, lines = await server.ended()
        assert status == 0
        assert {line["outcome"] for line in lines} == {"completed"}

    async def test_with_nothing_open_it_ends(self, tmp_path: Path) -> None:
        async with serving(tmp_path, "--demo") as server:
            server.process.send_signal(signal.SIGTERM)
            assert await server.ended() == (0, [])
        assert not [line for line in server.said if "Traceback" in line or "Warning" in line]


class TestServiceManager:
    @pytest.fixture(params=["path", "abstract"])
    def manager(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
        name = str(tmp_path / "n") if request.param == "path" else f"@kgb-test-{os.getpid()}-{os.urandom(4).hex()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
            sock.setblocking(False)
            yield sock, name

    async def test_is_told(self, tmp_path: Path, manager: tuple[socket.socket, str]) -> None:
        sock, name = manager
        async with serving(tmp_path, "--demo", NOTIFY_SOCKET=name) as server:
            assert "READY=1" in await self._told(sock)
            server.process.send_signal(signal.SIGTERM)
            told = await self._told(sock)
            assert told[0] == "STOPPING=1"
            assert any(re.fullmatch(r"EXTEND_TIMEOUT_USEC=\d+", line) for line in told)
            assert (await server.ended())[0] == 0

    async def test_hears_signs_of_life_as_long_as_streams_drain(
        self, tmp_path: Path, manager: tuple[socket.socket, str]
    ) -> None:
        sock, name = manager
        points = Rendezvous()
        more = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "100000"}
        async with two_parts(points) as upstream, serving(tmp_path, "--upstream", upstream.url, **more) as server:
            async with server.caller() as caller:
                await caller.get("/go")
                await caller.read_head()
                server.process.send_signal(signal.SIGTERM)
                while "STOPPING=1" not in await self._told(sock):
                    pass
                assert await self._told(sock) == ["WATCHDOG=1"]
                points.reach("go")
                await caller.read_body()
            assert (await server.ended())[0] == 0

    async def _told(self, sock: socket.socket) -> list[str]:
        async with asyncio.timeout(GUARD):
            return (await asyncio.get_running_loop().sock_recv(sock, 4096)).decode().splitlines()


class TestSharedPort:
    async def test_two_instances_serve_one_port_and_record_into_one_spool(self, tmp_path: Path) -> None:
        shared = ("--demo", "--reuse-port", "--instance")
        async with serving(tmp_path, *shared, "a") as one:
            async with serving(tmp_path, *shared, "b", "--port", str(one.port)) as other:
                for _ in range(64):
                    async with one.caller() as caller:
                        await caller.get("/v1/models")
                        assert (await caller.read_response()).status == 200
                for server in (one, other):
                    server.process.send_signal(signal.SIGTERM)
                served = [len((await server.ended())[1]) for server in (one, other)]
        assert sum(served) == 64
        assert min(served) > 0, "the system gives all connections to one of them"
        spooled = {path.name.partition("-")[0] for path in (tmp_path / "kgb" / "spool").iterdir()}
        assert spooled >= {"a", "b"}

    async def test_one_that_does_not_share_keeps_the_others_out(self, tmp_path: Path) -> None:
        async with serving(tmp_path, "--demo", "--instance", "a") as one:
            status, _, err = await outcome_of(
                tmp_path, "serve", "--demo", "--reuse-port", "--instance", "b", "--port", str(one.port)
            )
        assert status == 1
        assert "is taken by one that does not share it" in err


class TestFaultsOfTheStart:
    async def test_port_taken(self, tmp_path: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            status, out, err = await outcome_of(tmp_path, "serve", "--demo", "--port", str(port))
        assert (status, out) == (1, "")
        assert f"port {port} of 127.0.0.1 is taken" in err
        assert "Traceback" not in err

    async def test_every_fault_at_once(self, tmp_path: Path) -> None:
        config = tmp_path / "gateway.toml"
        config.write_text('prot = 1\nchain = ["acces_log"]\n[timeouts]\nidle = "long"\n')
        status, out, err = await outcome_of(tmp_path, "serve", "--config", str(config))
        assert (status, out) == (1, "")
        for words in ("'port'", "timeouts.idle", "'access_log'"):
            assert [line for line in err.splitlines() if words in line], (words, err)
        assert "Traceback" not in err

    @pytest.mark.parametrize("command", ["serve", "check"])
    async def test_other_machines_without_a_key(self, tmp_path: Path, command: str) -> None:
        status, _, err = await outcome_of(tmp_path, command, KGB_HOST="0.0.0.0")
        assert status == 1
        assert "kgb keys create" in err

    async def test_without_the_strict_parser(self, tmp_path: Path) -> None:
        status, _, err = await outcome_of(tmp_path, "serve", "--demo", "--port", "0", AIOHTTP_NO_EXTENSIONS="1")
        assert status == 1
        assert "C parser" in err

    async def test_wrong_words(self, tmp_path: Path) -> None:
        status, _, err = await outcome_of(tmp_path, "serve", "--prot", "1")
        assert status == 2
        assert "usage:" in err


async def test_open_files_are_allowed_as_far_as_the_system_lets_us(tmp_path: Path) -> None:
    limits = Path("/proc/self/limits")
    if not limits.exists():
        pytest.skip("needs /proc")
    pipe = asyncio.subprocess.PIPE
    command = f'ulimit -S -n 256 && exec "{sys.executable}" -m kgb_gateway serve --demo --port 0'
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", command, stdout=pipe, stderr=pipe, env=environment(tmp_path)
    )
    server = Server(process)
    try:
        await server.says("listening on")
        line = next(
            line for line in Path(f"/proc/{process.pid}/limits").read_text().splitlines() if "open files" in line
        )
        soft, hard = line.split()[3:5]
        assert soft == hard
    finally:
        process.terminate()
        assert (await server.ended())[0] == 0


async def test_kgb_in_front_of_fiedler(tmp_path: Path) -> None:
    async with ScriptedUpstream(respond(200, [(b"X-Seen", b"1")], b"through both")) as provider:
        async with serving(tmp_path, "--upstream", provider.url, module="fiedler_proxy") as fiedler:
            async with serving(tmp_path, "--upstream", fiedler.url) as kgb, kgb.caller() as caller:
                await caller.post("/v1/messages?beta=true", body=b"\x00\xffraw")
                answer = await caller.read_response()
                assert (answer.status, answer.body) == (200, b"through both")
                (request,) = provider.requests
                assert request.target == b"/v1/messages?beta=true"
                assert await request.body() == b"\x00\xffraw"
                for server in (kgb, fiedler):
                    server.process.terminate()
                    assert (await server.ended())[0] == 0


async def test_demo_answers_the_anthropic_sdk(tmp_path: Path) -> None:
    async with serving(tmp_path, "--demo") as server:
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as client:
            message = await client.messages.create(
                model="any", max_tokens=100, messages=[{"role": "user", "content": "Hello"}]
            )
        assert "demo" in message.content[-1].model_dump()["text"]
        server.process.terminate()
        status, lines = await server.ended()
    assert status == 0
    assert [(line["path"], line["outcome"]) for line in lines] == [("/v1/messages", "completed")]


async def test_kgb_demo(tmp_path: Path) -> None:
    status, out, err = await outcome_of(tmp_path, "demo", "--pace", "0")
    assert (status, err) == (0, "")
    assert "message_stop" in out

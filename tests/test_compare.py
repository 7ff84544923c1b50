"""``kgb compare`` between scripted servers: it finds every kind of difference, and none where there is none."""

import argparse
import asyncio
import contextlib
import itertools
import json
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trustme

from fiedler_proxy.testing import (
    ReceivedRequest,
    Script,
    ScriptedUpstream,
    UpstreamConnection,
    chunk_bytes,
    serve_forever,
    start_app,
)
from kgb_gateway.app import create_app, load
from kgb_gateway.commands import compare as command
from kgb_gateway.demo import create_demo_app, demo_upstream

KEY = "sk-very-secret-key"
EVENTS = [b'data: {"id":"%b"}\n\n', *(b'data: {"word":%d}\n\n' % number for number in range(6)), b"data: [DONE]\n\n"]
PACE = 0.02
"""Seconds between two portions of the scripted stream. It orders nothing: it is the pace that is compared."""


@attrs.frozen
class Site:
    """A scripted server: JSON on every path, a paced stream where the body asks for one."""

    status: int = 200
    more: tuple[tuple[bytes, bytes], ...] = ((b"Retry-After", b"3"), (b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2"))
    pieces: tuple[bytes, ...] = (b'{"id": "%b", "model": "m"}',)
    change: Callable[[bytes], bytes] = bytes
    gathers: bool = False
    cuts: bool = False
    stalls: bool = False
    echoes: bool = False
    counter: Any = attrs.field(factory=lambda: itertools.count(1000))

    def script(self) -> Script:
        return serve_forever(self.answer)

    async def answer(self, request: ReceivedRequest, conn: UpstreamConnection) -> None:
        body = await request.body()
        if self.stalls:
            await conn.stall()
        number = b"%d" % next(self.counter)
        streams = b'"stream": true' in body
        headers = [(b"Date", b"now " + number), (b"x-request-id", number), *self.more]
        if self.echoes:
            headers.append((b"x-echo", (request.header("x-api-key") or b"")))
        headers.append((b"Content-Type", b"text/event-stream" if streams else b"application/json"))
        parts = [self.change(part.replace(b"%b", number)) for part in (EVENTS if streams else self.pieces)]
        if request.method == "HEAD":
            await conn.send_head(self.status, [*headers, (b"Content-Length", b"9")])
        elif streams and not self.gathers:
            await self.stream(conn, headers, parts)
        else:
            await asyncio.sleep(PACE * len(parts) if streams else 0)
            await conn.send_response(self.status, headers, b"".join(parts))

    async def stream(self, conn: UpstreamConnection, headers: list[tuple[bytes, bytes]], parts: list[bytes]) -> None:
        await conn.send_head(self.status, [*headers, (b"Transfer-Encoding", b"chunked")])
        for part in parts[: 3 if self.cuts else None]:
            await conn.send(chunk_bytes(part))
            await asyncio.sleep(PACE)
        if self.cuts:
            conn.abort()
        else:
            await conn.end_chunks()


@contextlib.asynccontextmanager
async def both(direct: Site, via: Site) -> AsyncIterator[tuple[ScriptedUpstream, ScriptedUpstream]]:
    async with ScriptedUpstream(direct.script()) as one, ScriptedUpstream(via.script()) as other:
        yield one, other


def parse(*argv: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))
    return parser.parse_args(["compare", *map(str, argv)])


async def run(*argv: object) -> int:
    """The command in a thread of its own, as it has a loop of its own."""
    args = parse(*argv)
    code = await asyncio.to_thread(args.run, args)
    assert isinstance(code, int)
    return code


@pytest.fixture
def stream_file(tmp_path: Path) -> Path:
    path = tmp_path / "stream.http"
    path.write_text('POST /v1/messages\nContent-Type: application/json\n\n{"stream": true}')
    return path


@pytest.fixture
def plain_file(tmp_path: Path) -> Path:
    path = tmp_path / "plain.http"
    path.write_text("GET /v1/models")
    return path


async def test_agreeing_servers(capsys: pytest.CaptureFixture[str]) -> None:
    """With every id and date different, and a gateway's own header added."""
    own = (*Site().more, (b"x-kgb-request-id", b"1"))
    async with both(Site(), Site(more=own)) as (direct, via):
        assert await run("--direct", direct.url, "--via", via.url) == command.AGREED
    out = capsys.readouterr().out
    assert "DIFFERS" not in out
    assert "10 of 10 requests agree." in out
    assert "added by the gateway: x-kgb-request-id" in out
    assert "vary: date, x-request-id" in out
    assert [r.raw_head.split(b"\r\n")[0] for r in direct.requests[:1]] == [b"HEAD / HTTP/1.1"]


async def test_the_same_request_both_ways(plain_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte but for Host; only the gateway gets the gateway's key; direct answers frame the other one."""
    monkeypatch.setenv("KGB_KEY", KEY)
    async with both(Site(), Site()) as (direct, via):
        code = await run(
            "--direct", f"{direct.url}/base", "--via", via.url, "--request", plain_file, "--header", "X-Both: 1",
            "--via-header", "x-kgb-key: $KGB_KEY", "--repeat", 2,
        )  # fmt: skip
    assert code == command.AGREED
    assert len(direct.requests) == 3
    assert len(via.requests) == 2
    hosts = direct.url.removeprefix("http://"), via.url.removeprefix("http://")
    assert (
        direct.requests[0].raw_head.decode() == f"GET /base/v1/models HTTP/1.1\r\nHost: {hosts[0]}\r\nX-Both: 1\r\n\r\n"
    )
    own = f"X-Both: 1\r\nx-kgb-key: {KEY}\r\n\r\n"
    assert via.requests[0].raw_head.decode() == f"GET /v1/models HTTP/1.1\r\nHost: {hosts[1]}\r\n{own}"


@pytest.mark.parametrize(
    ("via", "aspect", "words"),
    [
        (Site(status=201), "status", "200 OK became 201 Created"),
        (Site(more=Site().more[1:]), "headers", "retry-after: missing via"),
        (Site(more=Site().more[:2]), "headers", "2 times direct, 1 times via"),
        (Site(more=(*Site().more, (b"Server", b"x"))), "headers", "server: added"),
        (Site(pieces=(b'{"id": "%b", "model": "n"}',)), "bytes", "after model"),
        (Site(change=lambda part: part.replace(b": ", b":")), "bytes", "became"),
    ],
)
async def test_difference(
    via: Site, aspect: str, words: str, plain_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with both(Site(), via) as (direct, other):
        code = await run("--direct", direct.url, "--via", other.url, "--request", plain_file, "--json")
    assert code == command.DIFFERENT
    document = json.loads(capsys.readouterr().out)
    assert document["agrees"] is False
    [request] = document["requests"]
    verdicts = {name: found["verdict"] for name, found in request["aspects"].items()}
    assert verdicts[aspect] == "DIFFERS"
    assert [name for name, verdict in verdicts.items() if verdict == "DIFFERS"] == [aspect]
    assert words in request["aspects"][aspect]["notes"][0]


@pytest.mark.parametrize(
    ("via", "aspect", "words"),
    [
        (Site(gathers=True), "pacing", "held back"),
        (Site(cuts=True), "bytes", "not complete via"),
        (Site(change=lambda part: part.replace(b'{"word":3}', b'{"word": 3}')), "bytes", "after word"),
        (Site(change=lambda part: part.replace(b"data: [DONE]\n\n", b": gone\n\n")), "bytes", "became"),
    ],
)
async def test_difference_in_a_stream(
    via: Site, aspect: str, words: str, stream_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with both(Site(), via) as (direct, other):
        code = await run("--direct", direct.url, "--via", other.url, "--request", stream_file, "--json")
    assert code == command.DIFFERENT
    found = json.loads(capsys.readouterr().out)["requests"][0]["aspects"][aspect]
    assert found["verdict"] == "DIFFERS"
    assert any(words in note for note in found["notes"])


async def test_a_hanging_gateway_differs(plain_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And is not asked again, each time being a whole timeout."""
    async with both(Site(), Site(stalls=True)) as (direct, via):
        code = await run("--direct", direct.url, "--via", via.url, "--request", plain_file, "--timeout", 0.2)
    assert code == command.DIFFERENT
    assert len(via.requests) == 1
    assert "nothing complete within 0.2 s" in capsys.readouterr().out


async def test_a_silent_server_cannot_be_compared(plain_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with both(Site(stalls=True), Site()) as (direct, via):
        code = await run("--direct", direct.url, "--via", via.url, "--request", plain_file, "--timeout", 0.2)
    assert code == command.FAILED
    assert "gave no answer" in capsys.readouterr().err


async def test_nobody_there(plain_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with both(Site(), Site()) as (direct, via):
        port = via.port
        await via.stop()
        code = await run("--direct", direct.url, "--via", via.url, "--request", plain_file)
    assert code == command.FAILED
    assert f"cannot connect to 127.0.0.1:{port}" in capsys.readouterr().err


async def test_secrets_are_never_printed(
    plain_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the gateway echoes them."""
    monkeypatch.setenv("MY_KEY", KEY)
    given = ("--request", plain_file, "--header", "x-api-key: $MY_KEY")
    async with both(Site(), Site(echoes=True)) as (direct, via):
        assert await run("--direct", direct.url, "--via", via.url, *given) == command.DIFFERENT
        assert await run("--direct", direct.url, "--via", via.url, *given, "--json") == command.DIFFERENT
    assert via.requests[0].header("x-api-key") == KEY.encode()
    said = capsys.readouterr()
    assert "x-echo: added" in said.out
    assert "[REDACTED]" in said.out
    assert KEY not in said.out + said.err


async def test_refused_by_the_server_itself(plain_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with both(Site(status=401), Site(status=401)) as (direct, via):
        assert await run("--direct", direct.url, "--via", via.url, "--request", plain_file) == command.AGREED
    assert "--key-env" in capsys.readouterr().out


async def test_tls_and_unix_socket(plain_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with (
        ScriptedUpstream(Site().script(), ssl=context, ignore_errors=True) as direct,
        ScriptedUpstream(Site().script(), unix=str(tmp_path / "s")) as via,
    ):
        asked = ("--direct", direct.url, "--via", via.url, "--request", plain_file)
        assert await run(*asked, "--ca-file", tmp_path / "ca.pem") == command.AGREED
        assert await run(*asked) == command.FAILED
        assert await run(*asked, "--ca-file", tmp_path / "none.pem") == command.FAILED
    said = capsys.readouterr().err
    assert "CERTIFICATE_VERIFY_FAILED" in said
    assert "none.pem: No such file" in said


async def test_the_gateway_in_front_of_the_demo_provider(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole promise in one command: nothing differs, and every header but the gateway's own is the provider's."""
    async with demo_upstream(0.005) as provider:
        flags = {
            "upstream": provider,
            "port": 0,
            "data_dir": str(tmp_path),
            "links.access_log.path": str(tmp_path / "log"),
        }
        async with start_app(create_app(load(flags))) as gateway:
            code = await run("--direct", provider, "--via", gateway.url)
    out = capsys.readouterr().out
    assert code == command.AGREED, out
    assert out.count("added by the gateway: x-kgb-request-id") == 10
    assert "letter case" not in out


async def test_the_demo_provider_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """Real dialects: ids, times and counters vary, and nothing else does."""
    async with start_app(create_demo_app(0.002)) as one, start_app(create_demo_app(0.002)) as other:
        code = await run("--direct", one.url, "--via", other.url)
    assert code == command.AGREED, capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--via", "http://x"], "--direct"),
        (["--direct", "ftp://x", "--via", "http://x"], "http(s) base URL"),
        (["--direct", "http://u:p@x", "--via", "http://x"], "user information"),
        (["--direct", "http://x", "--via", "http://x", "--repeat", "0"], "1 to 1000"),
        (["--direct", "http://x", "--via", "http://x", "--timeout", "inf"], "above 0"),
    ],
)
def test_usage(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parse(*argv)
    assert raised.value.code == command.FAILED
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--header", "x-api-key: literal"], "from the environment"),
        (["--key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
        (["--request", "/no/such/file"], "No such file"),
    ],
)
async def test_unusable_request(more: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run("--direct", "http://x", "--via", "http://x", *more) == command.FAILED
    assert words in capsys.readouterr().err

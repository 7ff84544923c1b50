"""access_log: one true line for every exchange, nothing secret and nothing forged in it."""

import asyncio
import contextlib
import json
import os
import re
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from aiohttp import web
from hypothesis import example, given
from hypothesis import strategies as st

from fiedler_proxy.errors import ExchangeError, SettingsError
from fiedler_proxy.exchange import Exchange, Outcome
from fiedler_proxy.lifecycle import EXCHANGE, Gateway, create_application
from fiedler_proxy.relay import Relay
from fiedler_proxy.server import Handler
from fiedler_proxy.testing import (
    RawClient,
    ReceivedRequest,
    ScriptedUpstream,
    UpstreamConnection,
    check_middleware,
    serve_forever,
    start_app,
)
from fiedler_proxy.upstream import parse_upstream
from kgb_gateway.middlewares.access_log import (
    FACTS_CAP,
    PATH_CAP,
    VALUE_CAP,
    AccessLog,
    line_of,
    note_of,
)

FIELDS = ["time", "id", "method", "path", "status", "outcome", "error", "bytes_in", "bytes_out", "ttfb_ms", "duration_ms",
          "caller", "route", "slot", "upstream", "remote", "upstream_request_id", "session", "facts"]  # fmt: skip
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@serve_forever
async def answer(request: ReceivedRequest, conn: UpstreamConnection) -> None:
    await request.body()
    if b"broken" in request.target:
        await conn.send_head(200, [(b"content-length", b"100")])
        await conn.send(b"half")
        conn.abort()
        return
    await conn.send_response(200, [(b"Request-Id", b"req_011"), (b"set-cookie", b"canary=1")], b"hello")


@web.middleware
@attrs.frozen
class Identify:
    """Plays the links behind the log."""

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        exchange = request[EXCHANGE]
        exchange.caller, exchange.route, exchange.slot = "alice", "messages", "blue"
        exchange.facts["tries"] = 2
        if "refuse" in exchange.path:
            raise ExchangeError("no_such_thing", "No.", status=404)
        return await handler(request)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@contextlib.asynccontextmanager
async def serving(link: AccessLog) -> AsyncIterator[RawClient]:
    async with ScriptedUpstream(answer) as upstream:
        gateway = Gateway(parse_upstream(upstream.url, "anthropic"))
        app = create_application(gateway, [link, Identify()], Relay(gateway))
        async with start_app(app) as address, RawClient(address.host, address.port) as client:
            yield client


def documents(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestLines:
    async def test_a_completed_exchange(self, path: Path) -> None:
        async with serving(AccessLog(str(path))) as client:
            headers = [("X-Claude-Code-Session-Id", "sess-1"), ("x-api-key", "canary"), ("cookie", "canary")]
            await client.post("/v1/messages?beta=true&key=canary", headers, b'{"canary": 1}')
            await client.read_response()
        (line,) = documents(path)
        assert list(line) == FIELDS
        assert RFC_3339.fullmatch(line["time"])
        assert line["duration_ms"] >= line["ttfb_ms"] > 0
        assert line | {"time": "", "id": "", "duration_ms": 0, "ttfb_ms": 0} == {
            "time": "",
            "id": "",
            "method": "POST",
            "path": "/v1/messages",
            "status": 200,
            "outcome": "completed",
            "error": "",
            "bytes_in": 13,
            "bytes_out": 5,
            "ttfb_ms": 0,
            "duration_ms": 0,
            "caller": "alice",
            "route": "messages",
            "slot": "blue",
            "upstream": "anthropic",
            "remote": "127.0.0.1",
            "upstream_request_id": "req_011",
            "session": "sess-1",
            "facts": {"tries": 2},
        }
        assert "canary" not in path.read_text()

    async def test_a_refusal_says_its_code_and_takes_no_id_of_ours_for_the_upstreams(self, path: Path) -> None:
        async with serving(AccessLog(str(path))) as client:
            await client.get("/refuse", [("anthropic-version", "2023-06-01")])
            response = await client.read_response()
        (line,) = documents(path)
        assert (line["status"], line["outcome"], line["error"]) == (404, "refused", "no_such_thing")
        assert response.header("request-id") == line["id"].encode()
        assert line["upstream_request_id"] == ""
        assert line["bytes_out"] == len(response.body)

    async def test_a_broken_stream_does_not_look_complete(self, path: Path) -> None:
        async with serving(AccessLog(str(path))) as client:
            await client.get("/broken")
            received, _ = await client.read_until_close()
            assert received.endswith(b"half")
        (line,) = documents(path)
        assert (line["status"], line["outcome"], line["bytes_out"]) == (200, "upstream_broke", 4)
        assert line["error"] != ""

    async def test_every_exchange_has_a_line_of_its_own(self, path: Path) -> None:
        async with serving(AccessLog(str(path))) as client:
            for number in range(20):
                await client.get(f"/v1/models/{number}")
                await client.read_response()
        lines = documents(path)
        assert [line["path"] for line in lines] == [f"/v1/models/{number}" for number in range(20)]
        assert len({line["id"] for line in lines}) == 20

    async def test_standard_output_is_the_default(self, capfd: pytest.CaptureFixture[str]) -> None:
        async with serving(AccessLog()) as client:
            await client.get("/v1/models")
            await client.read_response()
        assert json.loads(capfd.readouterr().out)["path"] == "/v1/models"

    async def test_a_file_is_for_its_owner_alone(self, path: Path) -> None:
        async with serving(AccessLog(str(path))):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


def fill(pipe: Path) -> None:
    """Write into ``pipe`` until nothing more goes in."""
    fd = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, b"x" * 4096)
    os.close(fd)


class TestLaw:
    async def test_a_reader_that_reads_nothing_holds_up_neither_the_loop_nor_the_end(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("kgb_gateway.log_writer.STOP_SECONDS", 0.1)
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        link = AccessLog(str(path), max_pending=10)
        try:
            async with asyncio.timeout(30), serving(link) as client:
                fill(path)
                for _ in range(50):
                    await client.get("/v1/models")
                    assert (await client.read_response()).status == 200
        finally:
            os.close(reader)
        assert link._log.dropped > 0
        assert "lines of the log" in caplog.text

    async def test_it_keeps_the_contract_of_a_middleware(self, path: Path) -> None:
        assert await check_middleware(AccessLog(str(path)))
        assert AccessLog.outer


class TestSettings:
    def test_a_queue_of_nothing_is_refused(self) -> None:
        with pytest.raises(SettingsError, match="max_pending is 0"):
            AccessLog(max_pending=0)

    async def test_a_file_that_cannot_be_opened_stops_the_start(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=r"links\.access_log\.path: .*No such file"):
            async with serving(AccessLog(str(tmp_path / "none" / "access.log"))):
                pass

    def test_its_repr_is_its_settings(self) -> None:
        assert repr(AccessLog("x")) == "AccessLog(path='x', max_pending=10000)"


def closed(**facts: Any) -> Exchange:
    """A closed exchange with these fields."""
    exchange = Exchange(**{"method": "GET", "target": "/", "path": "/", **facts})
    exchange.close(Outcome.COMPLETED)
    return exchange


def logged(**facts: Any) -> dict[str, Any]:
    line = line_of(closed(**facts))
    document: dict[str, Any] = json.loads(line)
    assert list(document) == FIELDS
    return document


class TestValues:
    def test_a_long_value_is_cut(self) -> None:
        line = logged(
            path="/" + "p" * 10_000,
            method="M" * 10_000,
            caller="c" * 10_000,
            id="i" * 10_000,
            response_headers=((b"request-id", b"r" * 10_000),),
            request_headers=((b"session-id", b"s" * 10_000),),
            facts={"f" * 10_000: "v" * 10_000, "bytes": b"b" * 10_000, "list": ["x"] * 10_000}
            | {f"more{number}": number for number in range(1000)},
        )
        assert len(line["path"]) == PATH_CAP
        assert {len(line[field]) for field in ("method", "caller", "id", "upstream_request_id", "session")} == {
            VALUE_CAP
        }
        assert len(line["facts"]) == FACTS_CAP
        assert max(len(str(value)) for value in line["facts"].values()) == VALUE_CAP

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (1, 1),
            (True, True),
            (None, None),
            (1.5, 1.5),
            (float("nan"), "nan"),
            (float("inf"), "inf"),
            (2**64 - 1, 2**64 - 1),
            (2**65, str(2**65)),
            ("text", "text"),
            (b"\xff", "\xff"),
            (Outcome.COMPLETED, "completed"),
            (["a", 1], "['a', 1]"),
            ({"a": 1}, "{'a': 1}"),
        ],
    )
    def test_facts_become_json_scalars(self, value: object, shown: object) -> None:
        assert logged(facts={"fact": value})["facts"] == {"fact": shown}

    def test_nothing_of_an_answer_is_no_time_to_first_byte(self) -> None:
        assert logged()["ttfb_ms"] is None
        assert logged(started=10.0, first_byte=10.25)["ttfb_ms"] == 250.0

    @pytest.mark.parametrize("name", [b"x-claude-code-session-id", b"Session-Id", b"X-SESSION-ID"])
    def test_each_agents_session_is_known(self, name: bytes) -> None:
        assert logged(request_headers=((name, b"s"),))["session"] == "s"

    @pytest.mark.parametrize("name", [b"request-id", b"X-Request-Id", b"x-amzn-RequestId", b"apim-request-id"])
    def test_each_providers_request_id_is_known(self, name: bytes) -> None:
        assert logged(response_headers=((b"date", b"x"), (name, b"r")))["upstream_request_id"] == "r"

    def test_time_is_rfc_3339_in_utc(self) -> None:
        assert logged(started_at=1_700_000_000.1239)["time"] == "2023-11-14T22:13:20.123Z"

    def test_a_note_says_how_many_are_missing(self) -> None:
        note = json.loads(note_of(7))
        assert note["dropped"] == 7
        assert RFC_3339.fullmatch(note["time"])

    @pytest.mark.parametrize(
        "key",
        [
            "kgb_0123456789_" + "aB3" * 14 + "x",
            "kgb_0123456789_aB3",
            "kgb%5F0123456789%5f" + "aB3" * 14 + "x",
            "sk-ant-api03-" + "x" * 40,
            "sk-proj-" + "x" * 40,
            "%73k-ant-api03-" + "x" * 40,
            "AIzaSy" + "x" * 33,
        ],
    )
    def test_a_key_in_the_path_or_in_a_value_is_redacted(self, key: str) -> None:
        line = logged(
            path=f"/v1/{key}/x",
            request_headers=((b"session-id", key.encode()),),
            response_headers=((b"x-request-id", key.encode()),),
            facts={key: key},
        )
        text = json.dumps(line)
        assert key not in text
        assert key[4:20] not in text
        assert text.count("[REDACTED]") == 5


text = st.text(st.characters(codec=None, categories=None), max_size=40) | st.sampled_from(
    ["\r\n", '"', "\\", '","status":200,"x":"', "\x7f", "\x1b[2J", "\u2028", "\x85", "\ud800", "\x00", "a\nb"]
)
raw = st.binary(max_size=40)
values = st.none() | st.booleans() | st.integers() | st.floats() | text | raw | st.lists(text, max_size=2)


@example("/\n{}", "GET", "", b"", b"", {})
@example("/\x7f", "\x7f", "\x7f", b"\x7f\xff", b"\x7f", {"\x7f": "\x7f"})
@example('","status":200', '"', "\\", b"\r\n", b"\x00", {'"': float("nan")})
@given(text, text, text, raw, raw, st.dictionaries(text, values, max_size=4))
def test_a_line_is_always_one_json_line_that_says_what_happened(
    path: str, method: str, caller: str, session: bytes, upstream_id: bytes, facts: dict[str, object]
) -> None:
    line = line_of(
        closed(
            path=path,
            method=method,
            caller=caller,
            remote=caller,
            status=503,
            facts=facts,
            request_headers=((b"session-id", session),),
            response_headers=((b"request-id", upstream_id),),
        )
    )
    assert all(" " <= letter <= "~" for letter in line)
    document = json.loads(line, parse_constant=pytest.fail)
    assert list(document) == FIELDS
    assert (document["path"], document["method"], document["caller"]) == (path, method, caller)
    assert (document["status"], document["outcome"]) == (503, "completed")
    assert document["session"] == session.decode("latin-1")


CANARY = "canary-5f3a"


@given(
    names=st.lists(st.sampled_from([b"authorization", b"x-api-key", b"Cookie", b"x-kgb-key", b"x-odd"]), max_size=4),
    query=text,
    form=st.sampled_from(["{}", "Bearer {}", "a={}"]),
)
def test_no_credential_ever_stands_in_a_line(names: list[bytes], query: str, form: str) -> None:
    secret = form.format(CANARY).encode()
    exchange = closed(
        target=f"/v1/models?{query}&key={CANARY}",
        path="/v1/models",
        request_headers=tuple((name, secret) for name in names),
        response_headers=((b"set-cookie", secret),),
    )
    assert CANARY not in line_of(exchange)

"""The sink: every conversation also at an existing Dewey, at least once, whatever that server does."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from aiohttp import WSMsgType, web

from fiedler_proxy.testing import start_app
from kgb_gateway.dewey import sink as module
from kgb_gateway.dewey.librarian import Librarian, lock
from kgb_gateway.dewey.sink import Sink, websocket_url
from kgb_gateway.dewey.spool import Layout
from tests.spools import Exchange, events, prices, request, turns, user, write


@attrs.define
class ScriptedDewey:
    """Speaks the origin's protocol, as far as it is told to."""

    conversations: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    stored: list[tuple[str, dict[str, Any]]] = attrs.field(factory=list)
    said: list[str] = attrs.field(factory=list)
    cut_after: int = 0
    """Close the connection instead of answering this call; 0: never."""
    refuse: str = ""
    """A tool that answers with an error."""

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                break
            asked = json.loads(message.data)
            self.said.append(asked["method"])
            if "id" not in asked:
                continue
            result = self.answer(asked)
            if self.cut_after and len(self.said) >= self.cut_after:
                self.cut_after = 0
                break
            await socket.send_json({"jsonrpc": "2.0", "id": asked["id"], **result})
        return socket

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["method"] == "initialize":
            assert asked["params"]["protocolVersion"] == "2024-11-05"
            return {"result": {"protocolVersion": "2024-11-05", "capabilities": {}, "serverInfo": {"name": "dewey"}}}
        assert asked["method"] == "tools/call"
        name, arguments = asked["params"]["name"], asked["params"]["arguments"]
        if name == self.refuse:
            self.refuse = ""
            return {"error": {"code": -32000, "message": "out of order"}}
        if name == "dewey_begin_conversation":
            key = f"conversation-{len(self.conversations)}"
            self.conversations[key] = arguments
            return {"result": {"content": [{"type": "text", "text": json.dumps({"conversation_id": key})}]}}
        assert name == "dewey_store_messages_bulk"
        self.stored += [(arguments["conversation_id"], message) for message in arguments["messages"]]
        return {"result": {"content": [{"type": "text", "text": "{}"}]}}

    def texts(self) -> list[tuple[str, str, str]]:
        """What is stored, each message once: conversation, role, text."""
        once = {message["metadata"]["id"]: (key, message["role"], message["content"]) for key, message in self.stored}
        return list(once.values())


@contextlib.asynccontextmanager
async def running(dewey: ScriptedDewey, home: Path) -> AsyncIterator[Sink]:
    app = web.Application()
    app.router.add_get("/", dewey.serve)
    async with start_app(app) as address:
        sink = Sink(Layout(home), f"dewey+ws://{address.host}:{address.port}")
        task = asyncio.create_task(sink.run())
        try:
            yield sink
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def take_in(home: Path) -> None:
    with lock(home):
        librarian = Librarian(home, prices())
        librarian.finish()
        librarian.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.01)


async def until(dewey: ScriptedDewey, number: int) -> None:
    while len(dewey.texts()) < number:
        await asyncio.sleep(0.005)


async def test_conversations_are_delivered_as_they_come(tmp_path: Path) -> None:
    write(tmp_path, turns(["one", "two"]))
    take_in(tmp_path)
    dewey = ScriptedDewey()
    async with running(dewey, tmp_path):
        await until(dewey, 4)
        write(tmp_path, turns(["other"], first=7, session="s-2"))
        await asyncio.to_thread(take_in, tmp_path)
        await until(dewey, 6)
    assert dewey.said[:2] == ["initialize", "notifications/initialized"]
    assert dewey.texts() == [
        ("conversation-0", "user", "one"),
        ("conversation-0", "assistant", "re: one"),
        ("conversation-0", "user", "two"),
        ("conversation-0", "assistant", "re: two"),
        ("conversation-1", "user", "other"),
        ("conversation-1", "assistant", "re: other"),
    ]
    assert len(dewey.conversations) == 2


@pytest.mark.parametrize("cut", range(1, 8))
async def test_an_outage_at_any_moment_costs_no_message(tmp_path: Path, cut: int) -> None:
    write(tmp_path, turns(["one", "two"]))
    take_in(tmp_path)
    dewey = ScriptedDewey(cut_after=cut)
    async with running(dewey, tmp_path):
        await until(dewey, 4)
    assert [text for _, _, text in dewey.texts()] == ["one", "re: one", "two", "re: two"]


async def test_a_server_that_refuses_is_asked_again(tmp_path: Path) -> None:
    write(tmp_path, turns(["one"]))
    take_in(tmp_path)
    dewey = ScriptedDewey(refuse="dewey_store_messages_bulk")
    async with running(dewey, tmp_path):
        await until(dewey, 2)


async def test_what_was_confirmed_is_not_sent_again(tmp_path: Path) -> None:
    write(tmp_path, turns(["one"]))
    take_in(tmp_path)
    dewey = ScriptedDewey()
    app = web.Application()
    app.router.add_get("/", dewey.serve)
    async with start_app(app) as address:
        for _ in range(2):
            sink = Sink(Layout(tmp_path), f"dewey+ws://{address.host}:{address.port}")
            task = asyncio.create_task(sink.run())
            await until(dewey, 2)
            while await asyncio.to_thread(sink._next):
                await asyncio.sleep(0.005)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    assert len(dewey.stored) == 2


async def test_messages_are_whole_and_hold_what_that_server_can_take(tmp_path: Path) -> None:
    big = "x" * 3_000_000
    write(tmp_path, [Exchange(1, request([user(big, "nul\0here")]), events("ok"))])
    take_in(tmp_path)
    dewey = ScriptedDewey()
    async with running(dewey, tmp_path):
        await until(dewey, 2)
    assert dewey.texts()[0][2] == f"{big}\nnul\ufffdhere"


@pytest.mark.parametrize("url", ["http://x", "dewey+ws:x", "dewey+ws://", "x"])
def test_a_sink_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="write dewey"):
        websocket_url(url)


def test_a_secure_sink() -> None:
    assert websocket_url("dewey+wss://h:1/p") == "wss://h:1/p"

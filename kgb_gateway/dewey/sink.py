"""The sink: every conversation also to an existing Dewey, in its own protocol.

Owns the protocol (MCP 2024-11-05, JSON-RPC 2.0 over a WebSocket: ``dewey_begin_conversation``, ``dewey_store_messages_bulk``) and what has
been delivered. It reads the store, so that an outage of that server costs nothing but time. Delivery is at least once: what was sent
and not confirmed is sent again; what was confirmed is noted before the next is sent.
"""

import asyncio
import json
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import attrs
from aiohttp import ClientError, ClientSession, ClientTimeout, ClientWebSocketResponse, WSMsgType

from kgb_gateway.dewey.document import Turn
from kgb_gateway.dewey.spool import Layout
from kgb_gateway.dewey.store.database import StoreError
from kgb_gateway.dewey.store.reader import StoreReader
from kgb_gateway.dewey.transcripts.model import Json, Message
from kgb_gateway.dewey.transcripts.view import view

PROTOCOL = "2024-11-05"
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before that server is tried again; each time twice as long."""

IDLE_SECONDS = 2.0
"""How often the store is looked at for what is new."""

ANSWER_SECONDS = 30.0
BATCH = 100
"""Messages of one call."""

_log = logging.getLogger("kgb.dewey")


class SinkError(Exception):
    """That server refused, or answered nothing that makes sense."""


def websocket_url(sink: str) -> str:
    """``dewey+ws://host:9020`` as a WebSocket's URL. ValueError for anything else."""
    scheme, separator, rest = sink.partition("://")
    if scheme not in ("dewey+ws", "dewey+wss") or not separator or not rest:
        raise ValueError(f"{sink!r} is no sink: write dewey+ws://HOST:PORT")
    return f"{scheme.removeprefix('dewey+')}://{rest}"


class Delivered:
    """What a sink has confirmed, in a file of its own beside the store."""

    def __init__(self, path: Path, sink: str) -> None:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._sink = sink
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.executescript(
            "CREATE TABLE IF NOT EXISTS turn (sink TEXT, uuid TEXT, PRIMARY KEY (sink, uuid)) WITHOUT ROWID;"
            "CREATE TABLE IF NOT EXISTS conversation (sink TEXT, key TEXT, remote TEXT, PRIMARY KEY (sink, key)) "
            "WITHOUT ROWID;"
        )

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def has(self, exchange: str) -> bool:
        """Whether the turn has been confirmed."""
        found = self._db.execute("SELECT 1 FROM turn WHERE sink = ? AND uuid = ?", (self._sink, exchange)).fetchone()
        return found is not None

    def confirm(self, exchange: str) -> None:
        """It has."""
        self._db.execute("INSERT OR IGNORE INTO turn VALUES (?, ?)", (self._sink, exchange))

    def remote(self, conversation: str) -> str:
        """That server's id of a conversation; "" where it has none yet."""
        row = self._db.execute(
            "SELECT remote FROM conversation WHERE sink = ? AND key = ?", (self._sink, conversation)
        ).fetchone()
        return str(row[0]) if row is not None else ""

    def begin(self, conversation: str, remote: str) -> None:
        """It has one now."""
        self._db.execute("INSERT OR REPLACE INTO conversation VALUES (?, ?, ?)", (self._sink, conversation, remote))


@attrs.define
class _Peer:
    """That server, over one connection."""

    socket: ClientWebSocketResponse
    _number: int = 0

    async def open(self) -> None:
        """The handshake."""
        hello = {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": {"name": "kgb-gateway", "version": "1"}}
        await self._ask("initialize", hello)
        await self.socket.send_json({"jsonrpc": "2.0", "method": "notifications/initialized"})

    async def call(self, tool: str, arguments: Mapping[str, Json]) -> Mapping[str, Json]:
        """The JSON that a tool answered. SinkError when it did not."""
        result = await self._ask("tools/call", {"name": tool, "arguments": arguments})
        if result.get("isError"):
            raise SinkError(f"{tool} failed")
        structured = result.get("structuredContent")
        if isinstance(structured, dict):
            return structured
        content = result.get("content")
        for part in content if isinstance(content, list) else []:
            try:
                told = json.loads(part["text"])
            except (ValueError, KeyError, TypeError):
                continue
            if isinstance(told, dict):
                return told
        return result

    async def _ask(self, method: str, params: Mapping[str, Json]) -> Mapping[str, Json]:
        self._number += 1
        await self.socket.send_json({"jsonrpc": "2.0", "id": self._number, "method": method, "params": params})
        async with asyncio.timeout(ANSWER_SECONDS):
            while True:
                message = await self.socket.receive()
                if message.type is not WSMsgType.TEXT:
                    raise SinkError("the connection ended")
                told = json.loads(message.data)
                if isinstance(told, dict) and told.get("id") == self._number:
                    break
        if "error" in told or not isinstance(told.get("result"), dict):
            raise SinkError(f"{method} was refused: {str(told.get('error'))[:200]}")
        result: Mapping[str, Json] = told["result"]
        return result


class Sink:
    """Delivers what is in the store of ``layout`` to ``url``, and what comes to be there."""

    def __init__(self, layout: Layout, url: str) -> None:
        self._layout = layout
        self._url = websocket_url(url)
        self._delivered = Delivered(layout.home / "sink.db", url)
        self._last = 0
        self._store = (0, 0)

    async def run(self) -> None:
        """Until cancelled."""
        pause = FIRST_PAUSE
        try:
            while True:
                try:
                    async with ClientSession(timeout=ClientTimeout(total=None, connect=ANSWER_SECONDS)) as session:
                        async with session.ws_connect(self._url, max_msg_size=0) as socket:
                            peer = _Peer(socket)
                            await peer.open()
                            pause = FIRST_PAUSE
                            await self._deliver(peer)
                except (ClientError, SinkError, OSError, TimeoutError, ValueError) as error:
                    _log.warning("the sink: %s; it is tried again in %.0f s", error or type(error).__name__, pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        finally:
            self._delivered.close()

    async def _deliver(self, peer: _Peer) -> None:
        while True:
            turns = await asyncio.to_thread(self._next)
            for turn in turns:
                await self._send(peer, turn)
                self._delivered.confirm(turn.exchange)
            if turns:
                self._last = max(self._last, *(int(str(turn.facts["row"])) for turn in turns))
            else:
                await asyncio.sleep(IDLE_SECONDS)

    def _next(self) -> list[Turn]:
        """The next turns of conversations that have not been confirmed."""
        try:
            store = StoreReader(self._layout)
        except StoreError:
            return []
        with store:
            status = os.stat(self._layout.store)
            if (status.st_dev, status.st_ino) != self._store:  # made anew: rows have other numbers
                self._store, self._last = (status.st_dev, status.st_ino), 0
            return list(self._undelivered(store))

    def _undelivered(self, store: StoreReader) -> Iterator[Turn]:
        found = 0
        rows = store.connection.execute(
            "SELECT id FROM exchange WHERE id > ? AND conversation IS NOT NULL ORDER BY id LIMIT 1000", (self._last,)
        ).fetchall()
        for row in rows:
            turn = store.turn(row[0])
            if self._delivered.has(turn.exchange):
                self._last = row[0]
                continue
            yield attrs.evolve(turn, facts={**turn.facts, "row": row[0]})
            found += 1
            if found == 20:
                return

    async def _send(self, peer: _Peer, turn: Turn) -> None:
        remote = self._delivered.remote(turn.conversation)
        if not remote:
            metadata = {
                "session": turn.session,
                "caller": turn.caller,
                "project": turn.project,
                "source": "kgb-gateway",
            }
            told = await peer.call(
                "dewey_begin_conversation",
                {"session_id": turn.session, "metadata": {**metadata, "key": turn.conversation}},
            )
            remote = str(told.get("conversation_id") or told.get("id") or "")
            if not remote:
                raise SinkError("dewey_begin_conversation gave no conversation_id")
            self._delivered.begin(turn.conversation, remote)
        messages = [*_messages(turn, turn.added, "request"), *_messages(turn, turn.replies, "reply")]
        for start in range(0, len(messages), BATCH):
            await peer.call(
                "dewey_store_messages_bulk", {"conversation_id": remote, "messages": messages[start : start + BATCH]}
            )


def _messages(turn: Turn, messages: Iterable[Message], part: str) -> Iterator[dict[str, Json]]:
    """Messages as that server takes them: whole, whatever their length; its index takes no NUL."""
    for number, message in enumerate(messages):
        texts = []
        for block in message.blocks:
            seen = view(turn.dialect, block) if turn.dialect is not None else None
            texts.append(f"{seen.name} {seen.text}" if seen is not None and seen.name else seen.text if seen else "")
        content = "\n".join(text for text in texts if text).replace("\0", "\ufffd")
        yield {
            "role": message.role,
            "content": content.encode("utf-8", "replace").decode(),
            "metadata": {
                "id": f"{turn.exchange}/{part}/{number}",
                "at": turn.at,
                "model": turn.model,
                "partial": turn.partial and part == "reply",
            },
        }

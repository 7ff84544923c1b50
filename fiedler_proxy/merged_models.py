"""``/v1/models`` answered from all the providers that a slot's routes name, in the dialect of whoever asks.

Owns what a merged list looks like. A provider that fails, is slow or has no key for it is left out: a list of most is better than none.
"""

import asyncio
import datetime as dt
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import attrs
from aiohttp import web

from fiedler_proxy.answer import Answer, TurnedAway
from fiedler_proxy.attempts import Attempts
from fiedler_proxy.errors import ExchangeError
from fiedler_proxy.exchange import Exchange
from fiedler_proxy.flow import Flow
from fiedler_proxy.gate import Gate
from fiedler_proxy.kept import Kept
from fiedler_proxy.provider import Place
from fiedler_proxy.relay import Relay
from fiedler_proxy.route import Decision, Route
from fiedler_proxy.server import OwnResponse
from fiedler_proxy.targets import Live
from fiedler_proxy.way import Way
from fiedler_proxy.wire import ResponseHead, Sink, UpstreamConnection

SECONDS = 5.0
"""How long each provider may take."""

PATHS = ("/v1/models", "/v1beta/models")

_log = logging.getLogger("kgb.route")


@attrs.frozen
class Model:
    """One model, as its provider calls it. ``created``: seconds since the epoch, 0 where nobody says."""

    id: str
    owner: str
    title: str = ""
    created: int = 0


@attrs.define(eq=False)
class MergedModels:
    """The plan of a request for the models (what of a ``relay.Plan`` the relay needs of it). ``dialect``: anthropic, openai or gemini."""

    lives: Sequence[Live]
    routes: Sequence[Route]
    dialect: str

    def ready(self, exchange: Exchange) -> bool:
        """``relay.Plan``."""
        return False

    async def begin(self, relay: Relay, request: web.Request, exchange: Exchange) -> web.StreamResponse:
        """``relay.Plan``."""
        target, headers = exchange.target, exchange.request_headers
        kept = exchange.kept = Kept(0)  # it is told once, as the caller sent it
        exchange.tell_request_head()
        kept.told = True
        found: list[Model] = []
        for live in self.lives:
            exchange.target, exchange.request_headers, exchange.hop_lines = target, headers, ()
            found += await self._ask(relay, request, exchange, live)
        aliases = {alias: route.targets[0] for route in self.routes for alias in route.aliases}
        found += [Model(alias, owner, f"{alias}, by {owner}") for alias, owner in aliases.items()]
        exchange.target, exchange.request_headers, exchange.hop_lines = target, headers, ()
        exchange.local = True
        body = json.dumps(rendered(list({model.id: model for model in reversed(found)}.values())[::-1], self.dialect))
        return OwnResponse(status=200, headers={"Content-Type": "application/json"}, body=body.encode())

    async def _ask(self, relay: Relay, request: web.Request, exchange: Exchange, live: Live) -> list[Model]:
        asks = live.target.provider
        own = live.keys is None and live.signer is None and asks.place is not Place.NONE
        if not asks.models or (own and str(asks.dialect) != self.dialect):
            return []  # the caller's key is for another provider, which need not see it
        way = Way.of(Decision(Route(live.name, (live.name,))), {live.name: live}, {})
        try:
            exchange.target = asks.models
            Attempts(way, (live,)).aim(exchange, live, time.monotonic())
            if live.signer is not None:
                exchange.hop_lines = await live.signer.lines(exchange, live.target, b"")
            async with asyncio.timeout(SECONDS):
                await relay.once(request, exchange, _Taker())
        except TurnedAway as turned:
            return list(_models(turned.answer, live.name)) if turned.answer.head.status == 200 else []
        except (ExchangeError, LookupError, TimeoutError) as error:
            _log.info(
                "models of %s: %s", live.name, error.code if isinstance(error, ExchangeError) else type(error).__name__
            )
        return []


class _Taker:
    """Takes every answer (a flow.Judge)."""

    began = False
    cap: ClassVar[int] = 0

    def takes(self, flow: Flow, connection: UpstreamConnection, head: ResponseHead) -> Sink:
        return Gate(flow, connection, head, cap=16 * 1024 * 1024)


def _models(answer: Answer, owner: str) -> Iterator[Model]:
    try:
        said = json.loads(b"".join(answer.body))
    except (ValueError, RecursionError):
        return
    listed = (
        said if isinstance(said, list) else (said.get("data") or said.get("models")) if isinstance(said, dict) else None
    )
    for each in listed if isinstance(listed, list) else ():
        if isinstance(each, Mapping):
            name = each.get("id") or str(each.get("name") or "").removeprefix("models/")
            if isinstance(name, str) and name:
                yield Model(name, owner, str(each.get("display_name") or each.get("displayName") or ""), _created(each))


def _created(said: Mapping[str, Any]) -> int:
    value = said.get("created", said.get("created_at"))
    if isinstance(value, str):
        try:
            return int(dt.datetime.fromisoformat(value).timestamp())
        except ValueError:
            return 0
    return value if isinstance(value, int) else 0


def rendered(models: Iterable[Model], dialect: str) -> dict[str, object]:
    """``models`` as Anthropic, OpenAI or Gemini lists them (their API references, "List models")."""
    every = list(models)
    if dialect == "gemini":
        return {"models": [{"name": f"models/{each.id}", "displayName": each.title or each.id} for each in every]}
    if dialect == "anthropic":
        data = [
            {"type": "model", "id": each.id, "display_name": each.title or each.id, "created_at": _moment(each.created)}
            for each in every
        ]
        ends = {"first_id": every[0].id if every else None, "last_id": every[-1].id if every else None}
        return {"data": data, "has_more": False, **ends}
    rows = [{"id": each.id, "object": "model", "created": each.created, "owned_by": each.owner} for each in every]
    return {"object": "list", "data": rows}


def _moment(seconds: int) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

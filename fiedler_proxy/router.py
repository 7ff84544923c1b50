"""The router: which slot and which route serve an exchange, and what a running gateway knows of its providers.

Owns the choice at the moment a request comes; from then on the exchange keeps what it got, whatever is switched or reloaded meanwhile. Where
a route depends on the model, the body is read as far as that takes, without being parsed or changed.
"""

import asyncio
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

import attrs
from aiohttp import web

from fiedler_proxy.attempts import Attempts
from fiedler_proxy.errors import ExchangeError, malformed_body
from fiedler_proxy.exchange import Exchange
from fiedler_proxy.kept import Kept
from fiedler_proxy.key_source import KeyRing
from fiedler_proxy.model_name import SCAN_CAP, AmbiguousModel, model_in, model_in_path, with_model
from fiedler_proxy.provider import Place, Target
from fiedler_proxy.relay import Relay
from fiedler_proxy.route import Asked, Decision, Route, Slot, cut
from fiedler_proxy.server import CONTINUE, caller_connection, read_body
from fiedler_proxy.slot_choice import Choice, ChoiceFile
from fiedler_proxy.target import path_of
from fiedler_proxy.targets import Live, in_order
from fiedler_proxy.upstream import Upstream

SESSIONS = (b"x-claude-code-session-id", b"session-id", b"session_id", b"x-session-id", b"x-session-affinity")
"""Headers that name the session of a caller (CONTRACTS section 1): for affinity, never for authorisation."""

BLUE, GREEN = "blue", "green"
"""The origin's slots: straight to the base URL, and through the routes."""


@attrs.frozen
class Tables:
    """What the configuration says of routing, ready to be used: ``base`` is where blue goes."""

    base: Upstream
    targets: Mapping[str, Target]
    slots: Mapping[str, Slot]
    base_dir: Path = Path()


@attrs.define(eq=False)
class Router:
    """The tables in force and the slot that was chosen. A new table takes over what is known of targets that stay the same."""

    tables: Tables
    file: ChoiceFile | None = None
    choice: Choice = attrs.field(factory=lambda: Choice(BLUE))
    lives: Mapping[str, Live] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.lives = self._lives(self.tables)
        if self.file is not None:
            self.choice = self.file.load({BLUE, *self.tables.slots}, BLUE)

    def _lives(self, tables: Tables) -> Mapping[str, Live]:
        known = {name: live for name, live in self.lives.items() if tables.targets.get(name) == live.target}
        return {name: known.get(name) or _live(target, tables.base_dir) for name, target in tables.targets.items()}

    def reload(self, tables: Tables) -> None:
        """Put ``tables`` in force for what comes from now on."""
        lives = self._lives(tables)
        self.tables, self.lives = tables, lives
        names = {BLUE, *tables.slots}
        if self.choice.active not in names or (self.choice.canary and self.choice.canary not in names):
            self.choose(self.choice.using(BLUE, "reload", "its slot is no longer configured"))

    def choose(self, choice: Choice) -> None:
        """Put ``choice`` in force, on disk first. OSError when it cannot be kept: then nothing has changed."""
        if self.file is not None:
            self.file.save(choice)
        self.choice = choice

    def known(self, slot: str) -> str:
        """``slot``; ValueError when there is none of that name."""
        names = (BLUE, *(name for name in self.tables.slots if name != BLUE))
        if slot not in names:
            raise ValueError(f"there is no slot {slot!r}; there are {', '.join(names)}")
        return slot

    def place(self, exchange: Exchange, prefixes: tuple[str, ...] = ()) -> None:
        """Give ``exchange`` its slot, its route and its upstream, or the plan that finds them. ``prefixes`` are taken off where it goes
        straight to the base URL."""
        choice = self.choice
        name = choice.active if not choice.share else choice.slot_of(sticky_of(exchange))
        exchange.slot = name
        tables = self.tables
        slot = tables.slots.get(name)
        if slot is None:
            exchange.upstream = tables.base
            straight(exchange, prefixes)
            return
        asked = Asked.of(exchange.method, exchange.path, exchange.request_headers, exchange.caller)
        decision = slot.decide(asked)
        if decision.route.needs_model:
            exchange.plan = ByModel(self, slot, asked)
        else:
            self.follow(exchange, decision)

    def follow(self, exchange: Exchange, decision: Decision) -> Attempts | None:
        """Send ``exchange`` along a route that was decided on; the plan, where it takes one."""
        route = decision.route
        exchange.route = route.name
        if route.prefix:
            exchange.target = cut(exchange.target, route.prefix) or exchange.target
        lives = [self.lives[name] for name in route.targets]
        only = lives[0]
        if len(lives) == 1 and only.keys is None and not _changes(only.target):
            exchange.upstream = only.target.upstream
            return None
        ordered = in_order(route, lives, time.monotonic())
        exchange.upstream = ordered[0].target.upstream
        plan = exchange.plan = Attempts(route, ordered, session_of(exchange))
        return plan


def straight(exchange: Exchange, prefixes: tuple[str, ...]) -> None:
    """The route of a gateway without routes: one of ``prefixes`` is taken off the target."""
    exchange.route = "default"
    for prefix in prefixes:
        rest = cut(exchange.target, prefix)
        if rest is not None:
            exchange.target, exchange.route = rest, prefix.strip("/")
            break


def _changes(target: Target) -> bool:
    """Whether a request has to be changed for ``target``, be it by a header."""
    return target.provider.fiedler or bool(target.provider.cut) or target.provider.place is Place.NONE


def _live(target: Target, base: Path) -> Live:
    return Live(target, KeyRing.of(target.keys, base) if target.central else None)


def session_of(exchange: Exchange) -> str:
    """The session that the caller names, "" for none."""
    for name in SESSIONS:
        value = exchange.find(name)
        if value:
            return value.decode("latin-1")
    return ""


def sticky_of(exchange: Exchange) -> str:
    """What the choice of a slot sticks to: the session, else the caller, else the address."""
    return session_of(exchange) or exchange.caller or exchange.remote


@attrs.define(eq=False)
class ByModel:
    """The plan of an exchange whose route depends on its model (a relay.Plan)."""

    router: Router
    slot: Slot
    asked: Asked

    async def serve(self, relay: Relay, request: web.Request, exchange: Exchange) -> web.StreamResponse:
        """``relay.Plan``."""
        body = b""
        model = model_in_path(exchange.path)
        named = None
        if not model:
            body = await peek(request, exchange)
            try:
                named = model_in(decoded(exchange, body))
            except AmbiguousModel:
                raise ExchangeError(
                    "ambiguous_model", "The request names its model twice.", status=400, retry=False
                ) from None
            model = named.name if named is not None else ""
        decision = self.slot.decide(attrs.evolve(self.asked, model=model))
        exchange.plan = None
        plan = self.router.follow(exchange, decision)
        alias = decision.route.aliases.get(model)
        if alias is not None:
            _rename(
                exchange, decision.route, model, alias, with_model(body, named, alias) if named is not None else None
            )
        kept = exchange.kept
        if kept is not None and not exchange.holds and exchange.request_body is None:
            exchange.tell_request_head()
            if kept.size:
                exchange.tell_request_bytes(kept.body())
            kept.told = True
        return await (plan.serve(relay, request, exchange) if plan is not None else relay.once(request, exchange))


def _rename(exchange: Exchange, route: Route, model: str, alias: str, body: bytes | None) -> None:
    """Ask for the model by the name that the provider has for it: the one change that a route makes, and it is marked."""
    if body is not None:
        if exchange.kept is None or not exchange.kept.whole:
            raise ExchangeError(
                "body_too_large",
                f"The request body is longer than the {SCAN_CAP} bytes in which a model can be replaced.",
                status=413,
                hint=f"name the model as the provider does, {alias!r}",
                retry=False,
            )
        exchange.request_body = body
    else:
        path, mark, query = exchange.target.partition("?")
        exchange.target = path.replace(f"/{model}", f"/{alias}", 1) + mark + query
    exchange.transformed = True
    exchange.facts["model_alias"] = f"{model} -> {alias} ({route.name})"


def decoded(exchange: Exchange, body: bytes) -> bytes:
    """``body`` without gzip, for a look into it; one in another coding is not looked into."""
    coding = (exchange.find(b"content-encoding") or b"").strip().lower()
    if coding == b"gzip":
        try:
            return zlib.decompressobj(31).decompress(body, SCAN_CAP)
        except zlib.error:
            return b""
    return b"" if coding not in (b"", b"identity") else body


async def peek(request: web.Request, exchange: Exchange) -> bytes:
    """Read the body, up to SCAN_CAP; what was read is in ``exchange.kept``. ExchangeError for a body that is broken or does not come."""
    kept = exchange.kept = Kept(SCAN_CAP)
    whole = read_body(request)
    if whole is not None:
        kept.put(whole)
        kept.whole = True
        return whole
    transport = caller_connection(request).transport
    if (exchange.find(b"expect") or b"").lower() == b"100-continue" and transport is not None:
        transport.write(CONTINUE)
    assert exchange.upstream is not None
    idle = exchange.upstream.timeouts.idle or None
    try:
        while kept.size < SCAN_CAP:
            async with asyncio.timeout(idle):
                data = await request.content.readany()
            if not data:
                kept.whole = True
                break
            kept.put(data)
    except TimeoutError:
        raise ExchangeError("request_timeout", f"After {idle:g} s the request body stalled.", status=408) from None
    except web.RequestPayloadError:
        raise malformed_body() from None
    return kept.body()


def explain(router: Router, method: str, target: str, headers: Asked, model: str, slot: str) -> Decision | None:
    """Which route of ``slot`` would serve a request; None where the slot goes straight to the base URL."""
    table = router.tables.slots.get(slot)
    if table is None:
        return None
    known = model or model_in_path(path_of(target))
    return table.decide(attrs.evolve(headers, method=method, path=path_of(target), model=known))


ROUTER: web.AppKey[Router] = web.AppKey("router", Router)
"""``app[ROUTER]``: the router of an application."""

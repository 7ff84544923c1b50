"""The router: which slot and which route serve an exchange, and what a running gateway knows of its providers.

Owns the choice at the moment a request comes; from then on the exchange keeps what it got, whatever is switched or reloaded meanwhile. Where
a route depends on the model, the body is read as far as that takes, without being parsed or changed.
"""

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
from aiohttp import web

from fiedler_proxy.attempts import Attempts, session_of
from fiedler_proxy.body_peek import decoded, peek, tell_kept
from fiedler_proxy.errors import ExchangeError
from fiedler_proxy.exchange import Exchange
from fiedler_proxy.key_source import KeyRing
from fiedler_proxy.merged_models import PATHS as MODEL_PATHS
from fiedler_proxy.merged_models import MergedModels
from fiedler_proxy.model_name import SCAN_CAP, AmbiguousModel, model_in, model_in_path, with_model
from fiedler_proxy.provider import Target
from fiedler_proxy.relay import Relay
from fiedler_proxy.route import Asked, Decision, Route, Slot, cut
from fiedler_proxy.signer import signer_of
from fiedler_proxy.slot_choice import Choice, ChoiceFile, Stamp
from fiedler_proxy.targets import Live, in_order
from fiedler_proxy.upstream import Upstream
from fiedler_proxy.way import Way

BLUE, GREEN = "blue", "green"
"""The origin's slots: straight to the base URL, and through the routes."""


@attrs.frozen
class Tables:
    """What the configuration says of routing, ready to be used: ``base`` is where blue goes."""

    base: Upstream
    targets: Mapping[str, Target]
    slots: Mapping[str, Slot]
    base_dir: Path = Path()
    environ: Mapping[str, str] = attrs.field(factory=lambda: os.environ, eq=False, repr=False)

    def based_on(self, upstream: Upstream) -> "Tables":
        """These, with ``upstream`` as the base: the demo's, where that takes the place of the configured one."""
        targets = {
            name: attrs.evolve(target, upstream=upstream) if target.upstream == self.base else target
            for name, target in self.targets.items()
        }
        return attrs.evolve(self, base=upstream, targets=targets)


WAYS_CAP = 1024
"""Ways that are remembered; beyond it the memory starts anew."""


Watcher = Callable[[Exchange], None]


@attrs.define(eq=False)
class Router:
    """The tables in force and the slot that was chosen. A new table takes over what is known of targets that stay the same.

    ``default``: the active slot where nobody has chosen. ``watchers`` are told of each exchange that was placed,
    ``canary_watch`` of each while there is a canary.
    """

    tables: Tables
    file: ChoiceFile | None = None
    default: str = BLUE
    choice: Choice = attrs.field(init=False)
    lives: Mapping[str, Live] = attrs.field(init=False, factory=dict)
    watchers: tuple[Watcher, ...] = ()
    canary_watch: Watcher | None = None
    _stamp: Stamp = None
    _ways: dict[tuple[object, ...], Way] = attrs.field(init=False, factory=dict)
    _kept: dict[tuple[str, str], dict[str, Live]] = attrs.field(init=False, factory=dict)
    _changing: asyncio.Lock = attrs.field(init=False, factory=asyncio.Lock)

    def __attrs_post_init__(self) -> None:
        self.choice = Choice(self.default)
        self.lives = self._lives(self.tables)
        self.refresh()

    def _lives(self, tables: Tables) -> Mapping[str, Live]:
        known = {name: live for name, live in self.lives.items() if tables.targets.get(name) == live.target}
        return {name: known.get(name) or _live(target, tables) for name, target in tables.targets.items()}

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of all slots."""
        return (BLUE, *(name for name in self.tables.slots if name != BLUE))

    def refresh(self) -> None:
        """Take over what another instance has chosen."""
        if self.file is None:
            return
        stamp = self.file.stamp()
        if stamp is not None and stamp != self._stamp:
            self._stamp = stamp
            self.choice = self.file.load(self.slots, self.default)

    def reload(self, tables: Tables) -> None:
        """Put ``tables`` in force for what comes from now on."""
        lives = self._lives(tables)
        self.tables, self.lives = tables, lives
        self._ways, self._kept = {}, {}
        choice = self.choice
        if choice.active not in self.slots or (choice.canary and choice.canary not in self.slots):
            self.choice = choice.using(self.default, "reload", "its slot is no longer configured")

    async def change(self, change: Callable[[Choice], Choice], identity: str = "") -> Choice:
        """Make ``change`` to the choice, on disk first, and put it in force for what comes from now on. ValueError from ``change``; OSError
        when it cannot be kept: then nothing has changed. ``identity``: the same for every instance that is told of one change."""
        async with self._changing:
            if self.file is None:
                self.choice = change(self.choice)
            else:
                self.choice = await asyncio.to_thread(self.file.update, self.slots, self.default, change, identity)
                self._stamp = self.file.stamp()
            return self.choice

    def put(self, choice: Choice) -> None:
        """``choice`` is in force at once, and only here: whoever is in a hurry keeps it on disk with ``change``."""
        self.choice = choice

    def known(self, slot: str) -> str:
        """``slot``; ValueError when there is none of that name."""
        if slot not in self.slots:
            raise ValueError(f"there is no slot {slot!r}; there are {', '.join(self.slots)}")
        return slot

    def place(self, exchange: Exchange, prefixes: tuple[str, ...] = (), *, merge_models: bool = False) -> None:
        """Give ``exchange`` its slot, its route and its upstream, or the plan that finds them. One of ``prefixes`` is taken off first.
        ``merge_models``: who asks for the models gets those of every provider of the slot."""
        choice = self.choice
        name = exchange.slot  # one that came through the inner door is bound to its slot
        if not name:
            name = exchange.slot = choice.active if not choice.share else choice.slot_of(sticky_of(exchange))
        tables = self.tables
        if choice.share and self.canary_watch is not None:
            self.canary_watch(exchange)
        for watcher in self.watchers:
            watcher(exchange)
        slot = tables.slots.get(name)
        if slot is None:
            exchange.upstream = tables.base
            straight(exchange, prefixes)
            return
        path = exchange.path
        for prefix in prefixes:
            if path.startswith(prefix) and (rest := cut(exchange.target, prefix)) is not None:
                exchange.target, path = rest, cut(path, prefix) or path
                break
        if merge_models and path in MODEL_PATHS and exchange.method == "GET":
            self._merge(exchange, slot, path)
            return
        shape = exchange.request_shape
        key = (name, path, exchange.caller, shape, slot.seen(exchange.request_headers, shape) if slot.asks else ())
        way = self._ways.get(key)
        if way is None:
            asked = Asked.of(exchange.method, path, exchange.request_headers, exchange.caller)
            way = self.way(slot, slot.decide(asked))
            if len(self._ways) >= WAYS_CAP:
                self._ways.clear()
            self._ways[key] = way
        if way.decision.route.needs_model:
            asked = Asked.of(exchange.method, path, exchange.request_headers, exchange.caller)
            exchange.plan = ByModel(self, slot, asked)
        else:
            follow(exchange, way)

    def way(self, slot: Slot, decision: Decision) -> Way:
        """The way of ``decision``; what it learns of sessions is the route's, whatever else tells two ways apart."""
        return Way.of(decision, self.lives, self._kept.setdefault((slot.name, decision.route.name), {}))

    def _merge(self, exchange: Exchange, slot: Slot, path: str) -> None:
        names = dict.fromkeys(name for route in slot.routes for name in route.targets)
        dialect = Asked.of(exchange.method, path, exchange.request_headers).native or "openai"
        exchange.route, exchange.upstream = "models", self.tables.base
        exchange.plan = MergedModels([self.lives[name] for name in names], slot.routes, dialect)


def follow(exchange: Exchange, way: "Way") -> Attempts | None:
    """Send ``exchange`` along ``way``; the plan, where it takes one."""
    route, lives = way.decision.route, way.lives
    exchange.route, exchange.dialect = route.name, lives[0].target.provider.dialect
    if route.prefix:
        exchange.target = cut(exchange.target, route.prefix) or exchange.target
    if way.plain:
        exchange.upstream = lives[0].target.upstream
        return None
    if not way.alone:
        if way.ordered:
            for live in lives:
                if live.troubled:
                    lives = in_order(route, lives, time.monotonic())
                    break
        else:
            lives = way.sticky_order(session_of(exchange) if route.affinity else "", time.monotonic())
    plan = exchange.plan = Attempts(way, lives)
    return plan


def straight(exchange: Exchange, prefixes: tuple[str, ...]) -> None:
    """The route of a gateway without routes: one of ``prefixes`` is taken off the target."""
    exchange.route = "default"
    for prefix in prefixes:
        rest = cut(exchange.target, prefix)
        if rest is not None:
            exchange.target, exchange.route = rest, prefix.strip("/")
            break


def _live(target: Target, tables: Tables) -> Live:
    signer = signer_of(target, tables.base_dir)
    ring = KeyRing.of(target.keys, tables.base_dir, tables.environ) if target.central and signer is None else None
    return Live(target, ring, signer)


def sticky_of(exchange: Exchange) -> str:
    """What the choice of a slot sticks to: the session, else the caller, else the address."""
    return session_of(exchange) or exchange.caller or exchange.remote


@attrs.define(eq=False)
class ByModel:
    """The plan of an exchange whose route depends on its model (what of a relay.Plan the relay needs of it)."""

    router: Router
    slot: Slot
    asked: Asked

    def ready(self, exchange: Exchange) -> bool:
        """``relay.Plan``."""
        return False

    async def begin(self, relay: Relay, request: web.Request, exchange: Exchange) -> web.StreamResponse:
        """``relay.Plan``."""
        plain = b""
        model = model_in_path(exchange.path)
        named = None
        if not model:
            plain = decoded(exchange, await peek(request, exchange))
            try:
                named = model_in(plain)
            except AmbiguousModel:
                raise ExchangeError(
                    "ambiguous_model", "The request names its model twice.", status=400, retry=False
                ) from None
            model = named.name if named is not None else ""
        decision = self.slot.decide(attrs.evolve(self.asked, model=model))
        exchange.plan = None
        plan = follow(exchange, self.router.way(self.slot, decision))
        alias = decision.route.aliases.get(model)
        if alias is not None:
            body = with_model(plain, named, alias) if named is not None else None
            _rename(exchange, decision.route, model, alias, body)
        tell_kept(exchange)
        return await (plan.begin(relay, request, exchange) if plan is not None else relay.once(request, exchange))


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
        exchange.request_body = body  # without the coding that it came in: what was changed is not packed again
        exchange.remove_request_headers(lambda name, _: name.lower() == b"content-encoding")
    else:
        path, mark, query = exchange.target.partition("?")
        exchange.target = path.replace(f"/{model}", f"/{alias}", 1) + mark + query
    exchange.transformed = True
    exchange.facts["model_alias"] = f"{model} -> {alias} ({route.name})"


ROUTER: web.AppKey[Router] = web.AppKey("router", Router)
"""``app[ROUTER]``: the router of an application."""

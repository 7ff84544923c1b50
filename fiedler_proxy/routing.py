"""What the configuration says of providers and slots, made into the tables that the router uses.

Owns the keys of ``[providers.NAME]`` and ``[[slots.NAME]]``, their defaults and what may not be: every fault is found at the start, and names the
key and what to do.
"""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

import attrs

from fiedler_proxy.config import Faults, at_least, between, nearest, setting
from fiedler_proxy.errors import Dialect
from fiedler_proxy.key_source import SIGNER_KINDS, wrong_source
from fiedler_proxy.provider import PROVIDERS, SIGNERS, Place, Provider, Target
from fiedler_proxy.route import SAFE, Pick, Retry, Route, Slot, default_routes
from fiedler_proxy.router import BLUE, GREEN, Tables
from fiedler_proxy.upstream import Upstream, parse_upstream

BASE = "base"
"""The name under which routes can go to ``[upstream]``."""


def _keys_wrong(values: tuple[str, ...]) -> str:
    return next(filter(None, map(wrong_source, values)), "")


def _prefix_wrong(value: str) -> str:
    if value and (not value.startswith("/") or value.endswith("/") or "?" in value or "#" in value):
        return "must begin with a slash and end with none, like '/openai'"
    return ""


def _native_wrong(value: str) -> str:
    return "" if value in ("", "anthropic", "openai", "gemini") else "must be anthropic, openai or gemini"


@attrs.frozen
class ProviderTable:
    """``[providers.NAME]``. ``like``: a known provider whose facts hold where this table is silent (NAME itself, where it is one);
    ``url``: base URL; ``place``: where the credential goes; ``dialect``: of its errors; ``keys``: where the gateway's own keys are
    read (``env:NAME``, ``file:/path``, ``credential:NAME``), none to forward the caller's; ``names``: what stands in braces in a URL."""

    like: str = setting("")
    url: str = setting("")
    place: Place | None = setting(None)
    dialect: Dialect | None = setting(None)
    keys: tuple[str, ...] = setting((), check=_keys_wrong, secret=False)
    names: Mapping[str, str] = setting({})


@attrs.frozen
class RouteTable:
    """One of ``[[slots.NAME]]``, the first that matches wins. See ``fiedler_proxy.route.Route`` for the fields; ``upstreams``: names of
    providers, or "base" for ``[upstream]``."""

    upstreams: tuple[str, ...]
    name: str = setting("")
    prefix: str = setting("", check=_prefix_wrong)
    native: str = setting("", check=_native_wrong)
    hosts: tuple[str, ...] = setting(())
    headers: Mapping[str, str] = setting({})
    callers: tuple[str, ...] = setting(())
    models: tuple[str, ...] = setting(())
    weights: tuple[float, ...] = setting(())
    aliases: Mapping[str, str] = setting({})
    retry: tuple[Retry, ...] = setting(tuple(sorted(SAFE)))
    pick: Pick = setting(Pick.ORDERED)
    affinity: bool = setting(True)


@attrs.frozen
class CanaryTable:
    """``[canary]``. ``guard``: whether a canary that does worse than the active slot is rolled back by the gateway itself; ``minimum``:
    requests of the canary before it may judge."""

    guard: bool = setting(True)
    minimum: int = setting(5, check=at_least(1))


@attrs.frozen
class ShadowTable:
    """``[shadow]``: ``slot`` gets copies of ``share`` (0 to 1) of the requests, at most ``requests`` and about ``tokens`` an hour; a body
    above ``body`` bytes is not copied."""

    slot: str = setting("")
    share: float = setting(0.01, check=between(0, 1))
    requests: int = setting(60, check=at_least(0))
    tokens: int = setting(1_000_000, check=at_least(0))
    body: int = setting(4 * 1024 * 1024, check=at_least(0))


def _path_wrong(value: str) -> str:
    return (
        ""
        if value.startswith("/") and value.isascii() and value.isprintable() and " " not in value
        else "must be a path"
    )


@attrs.frozen
class PreflightTable:
    """One of ``[[preflight]]``: a request that a slot must answer like the active one before it may be used. ``key`` names where a key is
    read (``env:NAME`` ...), which goes into ``x-api-key`` or, for the dialects of OpenAI, ``Authorization``."""

    path: str = setting(attrs.NOTHING, check=_path_wrong)
    name: str = setting("")
    method: str = setting("POST")
    body: str = setting("")
    headers: Mapping[str, str] = setting({})
    key: str = setting("", check=lambda value: wrong_source(value) if value else "", secret=False)


@attrs.define
class Maker:
    """Makes tables out of what is configured; faults are collected."""

    base: Upstream
    faults: Faults
    base_dir: Path = Path()
    environ: Mapping[str, str] = attrs.field(factory=lambda: os.environ)

    def tables(self, providers: Mapping[str, ProviderTable], slots: Mapping[str, tuple[RouteTable, ...]]) -> Tables:
        """The tables. What is at fault is left out of them."""
        targets: dict[str, Target] = {BASE: Target(Provider(BASE, "", dialect=Dialect.ANTHROPIC), self.base)}
        for name, table in providers.items():
            target = self._configured(name, table)
            if target is not None:
                targets[name] = target
        for name, provider in PROVIDERS.items():
            if name not in providers and (known := self._known(provider)) is not None:
                targets[name] = known
        made = {}
        for name, routes in slots.items():
            if name == BLUE:
                self.faults.add(
                    f"slots.{name}", "blue goes straight to [upstream] and has no routes; give them another name"
                )
                continue
            made[name] = Slot(name, tuple(self._routes(name, routes, targets)))
        if GREEN not in slots:
            made[GREEN] = Slot(GREEN, default_routes([name for name in targets if name != BASE], BASE))
        used = {each for slot in made.values() for route in slot.routes for each in route.targets}
        return Tables(
            self.base,
            {name: target for name, target in targets.items() if name in used},
            made,
            self.base_dir,
            self.environ,
        )

    def _configured(self, name: str, table: ProviderTable) -> Target | None:
        where = f"providers.{name}"
        like = table.like or (name if name in PROVIDERS else "")
        if like and like not in PROVIDERS:
            self.faults.add(f"{where}.like", f"no provider {like!r} is known{nearest(like, PROVIDERS)}")
            return None
        if not like and not table.url:
            self.faults.add(where, "needs a url, or `like` with the name of a known provider")
            return None
        known = PROVIDERS.get(like) or Provider(name, table.url, paths=("/",))
        provider = attrs.evolve(
            known,
            name=name,
            url=table.url or known.url,
            place=table.place or known.place,
            dialect=table.dialect or known.dialect,
        )
        signs = provider.place is Place.SIGV4 or (provider.place is Place.GOOGLE and table.keys)
        wrong = _missing_signer(provider) if signs else ""
        for key in table.keys:
            kind = key.partition(":")[0]
            if (kind in SIGNER_KINDS or len(table.keys) > 1) and not signs:
                wrong = wrong or (f"{key}: only a provider that signs takes it" if kind in SIGNER_KINDS else "")
            elif signs and kind not in (*SIGNER_KINDS, *(("file",) if provider.place is Place.GOOGLE else ())):
                wrong = wrong or f"{key}: it signs, with aws:PROFILE, google:default or Google's key file"
        if signs and len(table.keys) > 1:
            wrong = wrong or "one that signs takes one source of credentials"
        if signs and provider.place is Place.SIGV4 and not provider.value_of("region", table.names, self.environ):
            wrong = wrong or "needs names.region, or AWS_REGION in the environment: signatures are for one region"
        if wrong:
            self.faults.add(where, wrong)
            return None
        return self._target(provider, where, table.names, table.keys)

    def _known(self, provider: Provider) -> Target | None:
        """A provider of the table that nobody configured: there, where nothing is lacking. The environment's own key for it is used,
        but for Anthropic's, whose callers bring their own."""
        if provider.place in SIGNERS or provider.fiedler:
            return None
        try:
            provider.base_url({}, self.environ)
        except ValueError:
            return None
        keys = (
            ()
            if provider.name == "anthropic"
            else tuple(f"env:{variable}" for variable in provider.variables if self.environ.get(variable))
        )
        return self._target(provider, f"providers.{provider.name}", {}, keys[:1])

    def _target(self, provider: Provider, where: str, names: Mapping[str, str], keys: tuple[str, ...]) -> Target | None:
        try:
            url = provider.base_url(names, self.environ)
            upstream = parse_upstream(url, provider.name, timeouts=self.base.timeouts, limits=self.base.limits)
        except ValueError as error:
            self.faults.add(where, str(error))
            return None
        central = bool(keys) or provider.place is Place.SIGV4
        return Target(provider, upstream, keys, central, provider.value_of("region", names, self.environ))

    def _routes(self, slot: str, tables: tuple[RouteTable, ...], targets: Mapping[str, Target]) -> "list[Route]":
        routes: list[Route] = []
        for number, table in enumerate(tables):
            where = f"slots.{slot}[{number}]"
            for each in table.upstreams:
                if each not in targets:
                    known = "needs more than its name: give it a table [providers." + each + "]"
                    what = known if each in PROVIDERS else f"is no provider{nearest(each, targets)}"
                    self.faults.add(f"{where}.upstreams", f"{each!r} {what}")
            if not table.upstreams:
                self.faults.add(f"{where}.upstreams", "names nobody; write at least one provider")
            if table.weights and len(table.weights) != len(table.upstreams):
                self.faults.add(
                    f"{where}.weights", f"must be {len(table.upstreams)} numbers, one for each of upstreams"
                )
            if any(weight < 0 for weight in table.weights) or (table.weights and not sum(table.weights)):
                self.faults.add(f"{where}.weights", "must be numbers of at least 0, not all of them 0")
            upstreams = tuple(each for each in table.upstreams if each in targets)
            if upstreams:
                said = attrs.asdict(table, recurse=False)
                said.pop("upstreams")
                said["name"] = table.name or table.prefix.strip("/") or f"{slot}-{number + 1}"
                said["retry"] = frozenset(table.retry)
                routes.append(Route(targets=upstreams, **said))
        if not routes or not _takes_all(routes[-1]):
            routes.append(Route("default", (BASE,)))
        return routes


def _takes_all(route: Route) -> bool:
    return not any((route.prefix, route.native, route.hosts, route.headers, route.callers, route.models))


def _missing_signer(provider: Provider) -> str:
    needed = SIGNERS.get(provider.place)
    if needed is None:
        return ""
    module, extra = needed
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        return f"signs its requests with {module}, which is not installed: pip install 'kgb-gateway[{extra}]'"
    return ""

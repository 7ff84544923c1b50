"""Routes: which request goes where, decided from facts alone.

Pure. The first route that matches wins, and ``why_not`` says of every other one what did not: the decision and its explanation are
the same code.
"""

import enum
import fnmatch
import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

import attrs

from fiedler_proxy.headers import RawHeaders, Shape
from fiedler_proxy.provider import native


class Retry(enum.StrEnum):
    """Kinds of failure after which another upstream may be asked, as long as the caller has seen nothing."""

    CONNECT = "connect"
    RATE_LIMITED = "429"
    PAYMENT = "402"
    UNAUTHORIZED = "401"
    INTERNAL = "500"
    BAD_GATEWAY = "502"
    UNAVAILABLE = "503"
    OVERLOADED = "529"
    TIMEOUT = "timeout"
    BROKEN = "broken"


SAFE = frozenset(
    (Retry.CONNECT, Retry.RATE_LIMITED, Retry.PAYMENT, Retry.UNAUTHORIZED, Retry.UNAVAILABLE, Retry.OVERLOADED)
)
"""After these nothing was done: no connection, or an answer that says that the request was turned away. The others may have been
processed, and a route has to ask for them by name."""

BY_STATUS: Mapping[int, Retry] = {
    401: Retry.UNAUTHORIZED, 402: Retry.PAYMENT, 429: Retry.RATE_LIMITED, 500: Retry.INTERNAL, 502: Retry.BAD_GATEWAY,
    503: Retry.UNAVAILABLE, 529: Retry.OVERLOADED,
}  # fmt: skip


class Pick(enum.StrEnum):
    """How the first of several upstreams is chosen; the others follow in the order they are written in."""

    ORDERED = "ordered"
    WEIGHTED = "weighted"
    LEAST_BUSY = "least_busy"
    FASTEST = "fastest"


@attrs.frozen
class Asked:
    """What a decision is made from. ``headers`` by lower-case name, the first of each; ``model`` is None where nobody has looked yet,
    "" where the request names none."""

    method: str
    path: str
    headers: Mapping[str, str]
    caller: str = ""
    model: str | None = None

    @classmethod
    def of(cls, method: str, path: str, raw: RawHeaders, caller: str = "", model: str | None = None) -> "Asked":
        """From a request's raw headers."""
        headers: dict[str, str] = {}
        for name, value in raw:
            headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
        return cls(method, path, headers, caller, model)

    @property
    def native(self) -> str:
        """Whose native path this is, "" for none."""
        bearer = self.headers.get("authorization", "")[:7].lower() == "bearer "
        return native(self.path, self.headers, bearer=bearer)


@attrs.frozen
class Route:
    """What matches, and where it goes.

    Conditions that are empty always hold: ``prefix`` (taken off the path), ``native`` (anthropic, openai or gemini: bare native
    paths), ``hosts``, ``headers``, ``callers``, ``models`` (patterns with ``*``). ``targets``: names of providers in order, ``weights``
    beside them. ``aliases``: model as asked for to model as sent. ``retry``: after which failures the next one is asked.
    """

    name: str
    targets: tuple[str, ...]
    prefix: str = ""
    native: str = ""
    hosts: tuple[str, ...] = ()
    headers: Mapping[str, str] = attrs.field(factory=dict)
    callers: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    aliases: Mapping[str, str] = attrs.field(factory=dict)
    retry: frozenset[Retry] = SAFE
    pick: Pick = Pick.ORDERED
    affinity: bool = True

    @property
    def needs_model(self) -> bool:
        """Whether it cannot be decided, or served, without knowing the model."""
        return bool(self.models or self.aliases)

    def why_not(self, asked: Asked) -> str:
        """Why it does not match; "" when it does. A condition on the model holds as long as nobody knows the model."""
        if self.prefix and cut(asked.path, self.prefix) is None:
            return f"the path does not begin with {self.prefix}"
        if self.native and asked.native != self.native:
            return f"it is no native path of {self.native}"
        if self.hosts and not matches(self.hosts, asked.headers.get("host", "").partition(":")[0].lower()):
            return f"the host is none of {', '.join(self.hosts)}"
        for name, pattern in self.headers.items():
            if not matches((pattern,), asked.headers.get(name.lower(), "")):
                return f"the header {name} is not {pattern}"
        if self.callers and not matches(self.callers, asked.caller):
            return f"the caller is none of {', '.join(self.callers)}"
        if self.models and asked.model is not None and not matches(self.models, asked.model):
            return f"the model is none of {', '.join(self.models)}"
        return ""


def cut(path: str, prefix: str) -> str | None:
    """``path`` below ``prefix``, None where it is not below it: ``/openai`` takes ``/openai/v1``, and not ``/openai2``."""
    rest = path.removeprefix(prefix)
    if rest == path or rest[:1] not in ("", "/", "?"):
        return None
    return rest if rest[:1] == "/" else "/" + rest


def matches(patterns: Sequence[str], text: str) -> bool:
    """Whether one of ``patterns`` (``*`` and ``?``) is ``text``."""
    return any(_pattern(pattern).fullmatch(text) is not None for pattern in patterns)


@lru_cache(1024)
def _pattern(pattern: str) -> "re.Pattern[str]":
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")))


@attrs.frozen
class Decision:
    """Which route serves a request. ``passed``: of each route before it, why it did not match."""

    route: Route
    passed: tuple[tuple[str, str], ...] = ()


@attrs.frozen
class Slot:
    """A complete named routing table. Its last route takes everything, so that there is always one."""

    name: str
    routes: tuple[Route, ...]
    asks: frozenset[bytes] = attrs.field(init=False, eq=False, repr=False)

    @asks.default
    def _of_conditions(self) -> frozenset[bytes]:
        names = {name.lower().encode("latin-1") for route in self.routes for name in route.headers}
        names |= {b"host"} if any(route.hosts for route in self.routes) else set()
        names |= {b"authorization"} if any(route.native for route in self.routes) else set()
        return frozenset(names)

    def seen(self, headers: RawHeaders, shape: Shape) -> tuple[bytes, ...]:
        """What of the values of ``headers`` its routes look at: requests that have this, the shape, the path and the caller in common go the
        same way. Of a credential only its scheme."""
        return tuple(
            [
                headers[place][1] if shape.lower[place] != b"authorization" else headers[place][1][:7].lower()
                for place in shape.places(self.asks)
            ]
        )

    def decide(self, asked: Asked) -> Decision:
        """The first route that matches. LookupError when none does."""
        passed: list[tuple[str, str]] = []
        for route in self.routes:
            why = route.why_not(asked)
            if not why:
                return Decision(route, tuple(passed))
            passed.append((route.name, why))
        raise LookupError(f"no route of slot {self.name} takes it")


ALIASES: Mapping[str, tuple[str, str]] = {
    "gemini": ("gemini-openai", "gemini-2.5-pro"),
    "gpt5": ("openai", "gpt-5"),
    "gpt4o": ("openai", "gpt-4o"),
    "gpt4o-mini": ("openai", "gpt-4o-mini"),
    "grok": ("xai", "grok-4"),
    "grok-4": ("xai", "grok-4"),
    "llama": ("together", "meta-llama/Llama-3.3-70B-Instruct-Turbo"),
    "llama-3.3": ("together", "meta-llama/Llama-3.3-70B-Instruct-Turbo"),
    "deepseek": ("together", "deepseek-ai/DeepSeek-V3"),
    "deepseek-r1": ("together", "deepseek-ai/DeepSeek-R1"),
    "qwen": ("together", "Qwen/Qwen2.5-72B-Instruct-Turbo"),
    "opus": ("anthropic", "claude-opus-4-1"),
}
"""The origin's table (CONTRACTS section 4): what a caller may call a model, who serves it, and what that one calls it."""


def default_routes(known: Collection[str], base: str) -> tuple[Route, ...]:
    """Fiedler's own routes: a prefix for each provider, the origin's model aliases, native paths by their dialect, and ``base`` for
    what is left."""
    routes = [Route(f"/{name}", (name,), prefix=f"/{name}") for name in known]
    for provider in dict.fromkeys(provider for provider, _ in ALIASES.values() if provider in known):
        aliases = {alias: model for alias, (owner, model) in ALIASES.items() if owner == provider}
        dialect = "anthropic" if provider == "anthropic" else "openai"
        routes.append(Route(f"alias-{provider}", (provider,), native=dialect, models=tuple(aliases), aliases=aliases))
    routes += [Route(f"native-{name}", (name,), native=name) for name in ("openai", "gemini") if name in known]
    return (*routes, Route("default", (base,)))

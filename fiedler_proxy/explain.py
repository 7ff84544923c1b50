"""Which route would serve a request, and why: ``kgb route explain``.

Owns the words; the decision is the router's own code, asked without a request being sent.
"""

from collections.abc import Mapping

from fiedler_proxy.attempts import SESSIONS
from fiedler_proxy.key_source import Key
from fiedler_proxy.model_name import AmbiguousModel, model_in, model_in_path
from fiedler_proxy.provider import Place
from fiedler_proxy.route import Asked, cut
from fiedler_proxy.router import Router
from fiedler_proxy.slot_choice import Choice
from fiedler_proxy.target import path_of
from fiedler_proxy.targets import Live


def explained(router: Router, asked: Mapping[str, object]) -> dict[str, object]:
    """``asked``: ``method``, ``target``, ``headers`` (pairs), ``body``, ``caller``, ``session`` and ``slot``, all optional. ValueError tells what
    is wrong with it."""
    target, method = str(asked.get("target") or "/v1/messages"), str(asked.get("method") or "POST")
    if not target.startswith("/"):
        raise ValueError(f"{target!r} is no path: it must begin with a slash")
    headers = _headers(asked.get("headers"))
    caller = str(asked.get("caller") or "")
    said = asked.get("slot")
    slot, why = (router.known(str(said)), "it was asked for") if said else _slot(router.choice, headers, caller, asked)
    for prefix in _texts(asked.get("prefixes")):
        target = cut(target, prefix) or target
    result: dict[str, object] = {"slot": slot, "slot_why": why}
    table = router.tables.slots.get(slot)
    if table is None:
        base = router.tables.base
        return {
            **result, "route": "default", "route_why": f"{slot} goes straight to the base URL", "passed": [],
            "upstreams": [{"provider": base.name, "url": base.url + target, "credential": "the caller's, as it is"}],
        }  # fmt: skip
    path = path_of(target)
    model = model_in_path(path) or _model(str(asked.get("body") or ""))
    decision = table.decide(Asked(method, path, headers, caller, model))
    route = decision.route
    alias = route.aliases.get(model)
    rest = (cut(target, route.prefix) or target) if route.prefix else target
    return {
        **result,
        "route": route.name,
        "route_why": "; ".join(_conditions(route)) or "it takes everything",
        "passed": [{"route": name, "why": reason} for name, reason in decision.passed],
        "model": model,
        "sent_as": alias or model,
        "transformed": alias is not None,
        "retry": sorted(route.retry),
        "pick": str(route.pick),
        "upstreams": [_upstream(router.lives[name], rest) for name in route.targets],
    }


def _slot(choice: Choice, headers: Mapping[str, str], caller: str, asked: Mapping[str, object]) -> tuple[str, str]:
    if not choice.share:
        return choice.active, "it is the active one"
    named = (headers.get(name.decode(), "") for name in SESSIONS)
    sticky = str(asked.get("session") or "") or next(filter(None, named), "") or caller
    slot = choice.slot_of(sticky)
    what = "the canary" if slot == choice.canary else "the active one"
    return slot, f"{what}, {choice.canary} gets {choice.share:.2%} of the sessions, and this is {sticky or 'none'!r}"


def _headers(said: object) -> dict[str, str]:
    pairs = said if isinstance(said, list) else []
    return {str(name).lower(): str(value) for name, value in reversed(pairs)}


def _texts(said: object) -> list[str]:
    return [str(each) for each in said] if isinstance(said, list) else []


def _model(body: str) -> str:
    try:
        named = model_in(body.encode("utf-8", "surrogateescape"))
    except AmbiguousModel as error:
        raise ValueError(str(error)) from None
    return named.name if named is not None else ""


def _conditions(route: object) -> list[str]:
    names = ("prefix", "native", "hosts", "headers", "callers", "models")
    found = [(name, getattr(route, name)) for name in names]
    return [f"{name} {_written(value)}" for name, value in found if value]


def _written(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {each}" for key, each in value.items())
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _upstream(live: Live, target: str) -> dict[str, object]:
    provider = live.target.provider
    sent = target.removeprefix(provider.cut) if provider.cut else target
    return {
        "provider": live.name,
        "url": live.target.upstream.url + sent,
        "credential": _credential(live),
        "serves": any(path_of(sent).startswith(prefix) for prefix in provider.paths),
        "running": live.running,
        "failures_in_a_row": live.breaker.failures,
    }


def _credential(live: Live) -> str:
    place = live.target.provider.place
    if live.keys is None:
        return "none" if place is Place.NONE else "the caller's, as it is"
    return f"{', '.join(_source(key) for key in live.keys.keys)} in {place}"


def _source(key: Key) -> str:
    return key.source

"""The chain: names and tables in, an ordered list of links out, with every fault that stops it.

Owns how a name becomes a link (an installed one by its entry point, or ``module:attribute``), how a table becomes its
fields, and what order is allowed. It starts nothing. Built-in links come through the same door as an author's.
"""

import importlib
import inspect
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import attrs

from fiedler_proxy.config import Faults, build, keys_of, nearest
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.headers import REDACTED

GROUP = "kgb_gateway.middlewares"
"""The entry-point group in which links are installed."""

ALWAYS = ("guard", "health")
"""Links that every chain has; where the chain does not name them they stand behind its outer links."""

TERMINALS = frozenset(("fiedler",))

POWERS = ("transforms", "reads_body")
"""Class attributes by which a link declares what it may do beyond observing and refusing."""


@attrs.frozen
class Entry:
    """A link in its place. ``name`` as in the chain; ``source`` is where its class stands; ``why`` it is there."""

    name: str
    link: Any
    source: str
    why: str = "named in chain"

    @property
    def powers(self) -> tuple[str, ...]:
        """What it declares to do to bytes."""
        return tuple(power for power in POWERS if getattr(self.link, power, False))

    def settings(self) -> dict[str, object]:
        """Its fields as configured, secrets redacted; a plain function has none."""
        if not attrs.has(type(self.link)):
            return {}
        return {
            key: REDACTED if field.metadata.get("secret") else getattr(self.link, field.name)
            for key, field in keys_of(type(self.link)).items()
        }


@attrs.frozen
class Row:
    """A line of ``kgb chain``."""

    position: int
    name: str
    source: str
    settings: dict[str, object]
    powers: tuple[str, ...]
    why: str


@attrs.frozen
class Chain:
    """The composed chain, outermost first; the relay behind it is no part of it."""

    entries: tuple[Entry, ...]

    @property
    def links(self) -> tuple[Any, ...]:
        """The middlewares in order."""
        return tuple(entry.link for entry in self.entries)

    def find(self, name: str) -> Any:
        """The link called ``name``, or None."""
        return next((entry.link for entry in self.entries if entry.name == name), None)

    def describe(self) -> list[Row]:
        """What ``kgb chain`` shows."""
        return [
            Row(position, entry.name, entry.source, entry.settings(), entry.powers, entry.why)
            for position, entry in enumerate(self.entries, 1)
        ]


def installed() -> dict[str, EntryPoint]:
    """The installed links by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def compose(
    names: Iterable[str],
    tables: Mapping[str, object],
    faults: Faults,
    *,
    where: str = "chain",
    defaults: Mapping[str, Mapping[str, object]] | None = None,
    always: Iterable[str] = ALWAYS,
) -> Chain:
    """The chain of ``names``; ``tables`` are the ``[links.NAME]`` tables, ``defaults`` fill what they leave out.

    Whatever is wrong goes to ``faults``; the chain is complete only when none was added.
    """
    names = list(names)
    points = installed()
    spellings = dict(tables)
    for name in sorted({name for name in names if names.count(name) > 1}):
        faults.add(where, f"{name!r} stands in the chain more than once")
    entries = []
    for name in dict.fromkeys(names):
        entry = _entry(name, points, spellings, defaults or {}, faults, where)
        if entry is not None:
            entries.append(entry)
    entries = _with_always(entries, names, always, points, spellings, defaults or {}, faults)
    for table in spellings:
        known = [*names, *always]
        faults.add(f"links.{table}", f"the chain has no link of that name{nearest(table, known)}")
    _check_order(entries, faults, where)
    return Chain(tuple(entries))


def _with_always(
    entries: list[Entry],
    names: list[str],
    always: Iterable[str],
    points: Mapping[str, EntryPoint],
    tables: dict[str, object],
    defaults: Mapping[str, Mapping[str, object]],
    faults: Faults,
) -> list[Entry]:
    place = next((i for i, entry in enumerate(entries) if not getattr(entry.link, "outer", False)), len(entries))
    for name in always:
        if name in names:
            continue
        entry = _entry(name, points, tables, defaults, faults, "chain")
        if entry is not None:
            entries.insert(place, attrs.evolve(entry, why="always there, behind the outer links"))
            place += 1
    return entries


def _entry(
    name: str,
    points: Mapping[str, EntryPoint],
    tables: dict[str, object],
    defaults: Mapping[str, Mapping[str, object]],
    faults: Faults,
    where: str,
) -> Entry | None:
    target = _load(name, points, faults, where)
    table = tables.pop(name, None)
    if table is None and ":" in name:
        table = tables.pop(name.rpartition(":")[2], None)
    if target is None:
        return None
    link = _instance(name, target, table, defaults.get(name, {}), faults)
    if link is None or not _is_middleware(name, link, faults, where):
        return None
    return Entry(name, link, _source(target))


def _load(name: str, points: Mapping[str, EntryPoint], faults: Faults, where: str) -> Any:
    try:
        if name in points:
            return points[name].load()
        module, colon, attribute = name.partition(":")
        if not colon:
            known = [*points, *TERMINALS]
            faults.add(
                where, f"no link is called {name!r}{nearest(name, known)}; installed: {', '.join(sorted(points))}"
            )
            return None
        return _attribute(importlib.import_module(module), attribute, name, faults, where)
    except Exception as error:
        faults.add(where, f"{name!r} cannot be imported: {type(error).__name__}: {error}")
        return None


def _attribute(module: Any, attribute: str, name: str, faults: Faults, where: str) -> Any:
    target = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            known = [key for key in vars(module) if not key.startswith("_")]
            faults.add(where, f"{name!r}: the module has no {attribute!r}{nearest(attribute, known)}")
            return None
        target = getattr(target, part)
    return target


def _instance(name: str, target: Any, table: object, defaults: Mapping[str, object], faults: Faults) -> Any:
    where = f"links.{name}"
    if not inspect.isclass(target):
        if table:
            faults.add(where, f"{name!r} is a function and takes no settings")
        return target
    if not attrs.has(target):
        if table:
            faults.add(where, f"{name!r} is no attrs class and takes no settings")
        try:
            return target()
        except Exception as error:
            faults.add(where, f"{name!r} cannot be made: {type(error).__name__}: {error}")
            return None
    given = {} if table is None else table
    if isinstance(given, Mapping):
        given = {**{key: value for key, value in defaults.items() if key in keys_of(target)}, **given}
    try:
        return build(target, given, where, faults)
    except SettingsError as error:
        faults.found.extend(error.faults)
    except Exception as error:
        faults.add(where, f"{name!r} cannot be made: {type(error).__name__}: {error}")
    return None


def _is_middleware(name: str, link: Any, faults: Faults, where: str) -> bool:
    call = link if inspect.isroutine(link) else getattr(link, "__call__", None)  # noqa: B004
    if call is None or not inspect.iscoroutinefunction(call):
        faults.add(where, f"{name!r} is no middleware: it is not an async function or a class with an async __call__")
        return False
    if getattr(link, "__middleware_version__", None) != 1:
        faults.add(where, f"{name!r} is not decorated; write @web.middleware above it")
        return False
    return True


def _source(target: Any) -> str:
    return f"{getattr(target, '__module__', '?')}:{getattr(target, '__qualname__', type(target).__qualname__)}"


def _check_order(entries: list[Entry], faults: Faults, where: str) -> None:
    place = {entry.name: position for position, entry in enumerate(entries)}
    for entry in entries:
        for other in getattr(entry.link, "after", ()):
            if place.get(other, -1) > place[entry.name]:
                faults.add(where, f"{entry.name!r} must stand after {other!r}")
        for other in getattr(entry.link, "before", ()):
            if place.get(other, len(entries)) < place[entry.name]:
                faults.add(where, f"{entry.name!r} must stand before {other!r}")

"""The chain: names and tables in, an ordered list of links out, with every fault that stops it.

Owns how a name becomes a link (an installed one by its entry point, or ``module:attribute``), how a table becomes its
fields, and what order is allowed. It starts nothing. Built-in links come through the same door as an author's.
"""

import importlib
import inspect
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import attrs

from fiedler_proxy.config import Faults, absolute, build, keys_of, nearest, visible
from fiedler_proxy.errors import SettingsError

GROUP = "kgb_gateway.middlewares"
"""The entry-point group in which links are installed."""

ALWAYS = ("guard", "health")
"""Links that every chain has; where the chain does not name them they stand behind its outer links."""

WHERE = "chain"
"""The key that holds the names."""

POWERS = ("transforms", "reads_body")
"""Class attributes by which a link declares what it may do beyond observing and refusing."""


@attrs.frozen
class Entry:
    """A link in its place. ``name`` as in the chain; ``source`` is where its class stands; ``why`` it is there.

    ``table``: the name below ``[links]`` under which its settings were found.
    """

    name: str
    link: Any
    source: str
    table: str
    why: str = "named in chain"

    @property
    def outer(self) -> bool:
        """Whether it may stand before the guard."""
        return bool(getattr(self.link, "outer", False))

    @property
    def powers(self) -> tuple[str, ...]:
        """What it declares to do to bytes."""
        return tuple(power for power in POWERS if getattr(self.link, power, False))

    def settings(self) -> dict[str, object]:
        """Its fields as configured, secrets redacted; a plain function has none."""
        return visible(self.link) if attrs.has(type(self.link)) else {}


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
    defaults: Mapping[str, Mapping[str, object]] | None = None,
    always: Iterable[str] = ALWAYS,
    known: Iterable[str] = (),
    base: Path | None = None,
) -> Chain:
    """The chain of ``names``; ``tables`` are the ``[links.NAME]`` tables, ``defaults`` fill what they leave out.

    ``known`` are names that are no links and may be meant by a misspelled one; paths in the tables are relative to
    ``base``. Whatever is wrong goes to ``faults``; the chain is complete only when none was added.
    """
    maker = _Maker(faults, dict(tables), defaults or {}, tuple(known), base or Path())
    names = [maker.short(name) for name in names]
    for name in sorted({name for name in names if names.count(name) > 1}):
        faults.add(WHERE, f"{name!r} stands in the chain more than once")
    entries = [entry for name in dict.fromkeys(names) if (entry := maker.entry(name)) is not None]
    entries = _with_always(entries, names, tuple(always), maker)
    for table in maker.tables:
        faults.add(f"links.{table}", f"the chain has no link of that name{nearest(table, [*names, *always])}")
    _check_order(entries, faults)
    _check_guard(entries, faults)
    return Chain(tuple(entries))


def _with_always(entries: list[Entry], names: list[str], always: tuple[str, ...], maker: "_Maker") -> list[Entry]:
    """``entries`` with those that are always there: behind the outer ones, and behind each other."""
    place = next((i for i, entry in enumerate(entries) if not entry.outer), len(entries))
    for name in always:
        if name in names:
            named = next((i for i, entry in enumerate(entries) if entry.name == name), place - 1)
            place = max(place, named + 1)
        elif (entry := maker.entry(name)) is not None:
            entries.insert(place, attrs.evolve(entry, why="always there, behind the outer links"))
            place += 1
    return entries


@attrs.define
class _Maker:
    """Makes the entries of one chain. ``tables``: those that no entry has taken yet."""

    faults: Faults
    tables: dict[str, object]
    defaults: Mapping[str, Mapping[str, object]]
    known: tuple[str, ...]
    base: Path
    points: tuple[EntryPoint, ...] = attrs.field(factory=lambda: tuple(entry_points(group=GROUP)))

    def short(self, name: str) -> str:
        """The installed name of what ``name`` names by module and attribute, so that nothing is there twice."""
        alike = [point.name for point in self.points if point.value == name]
        return alike[0] if alike and len(self._values(alike[0])) == 1 else name

    def _values(self, name: str) -> list[str]:
        return sorted({point.value for point in self.points if point.name == name})

    def entry(self, name: str) -> Entry | None:
        """The link called ``name`` with its table; None, and faults, when there is none to be had."""
        values = self._values(name)
        spelled = next((s for s in _spellings(name, values) if s in self.tables), name)
        table = self.tables.pop(spelled, None)
        target = self._load(name, values)
        if target is None:
            return None
        link = self._instance(name, spelled, target, table)
        if link is None or not _is_middleware(name, link, self.faults):
            return None
        return Entry(name, link, _source(target), spelled)

    def _load(self, name: str, values: list[str]) -> Any:
        try:
            if values:
                if len(values) > 1:
                    self.faults.add(WHERE, f"{name!r} may mean {' or '.join(values)}: write the one that is meant")
                    return None
                return next(point for point in self.points if point.name == name).load()
            module, colon, attribute = name.partition(":")
            if colon:
                return self._attribute(importlib.import_module(module), attribute, name)
        except (Exception, SystemExit) as error:
            self.faults.add(WHERE, f"{name!r} cannot be imported: {type(error).__name__}: {error}")
            return None
        names = sorted({point.name for point in self.points})
        near = nearest(name, [*names, *self.known])
        self.faults.add(WHERE, f"no link is called {name!r}{near}; installed: {', '.join(names)}")
        return None

    def _attribute(self, module: Any, attribute: str, name: str) -> Any:
        target = module
        for part in attribute.split("."):
            if not hasattr(target, part):
                known = [key for key in vars(target) if not key.startswith("_")] if hasattr(target, "__dict__") else []
                what = "module" if target is module else f"{target.__name__!r}" if inspect.isclass(target) else "object"
                self.faults.add(WHERE, f"{name!r}: the {what} has no {part!r}{nearest(part, known)}")
                return None
            target = getattr(target, part)
        return target

    def _instance(self, name: str, spelled: str, target: Any, table: object) -> Any:
        where = f"links.{spelled}"
        try:
            if inspect.isclass(target) and attrs.has(target):
                return self._build(name, where, target, {} if table is None else table)
            if table:
                self.faults.add(where, f"{name!r} is {_kind(target)} and takes no settings")
            return target() if inspect.isclass(target) else target
        except SettingsError as error:
            self.faults.found.extend(error.faults)
        except Exception as error:
            self.faults.add(where, f"{name!r} cannot be made: {type(error).__name__}: {error}")
        return None

    def _build(self, name: str, where: str, target: type, table: object) -> Any:
        if isinstance(table, Mapping):
            given = absolute(target, table, self.base)
            fields = keys_of(target)
            own = {key: value for key, value in self.defaults.get(name, {}).items() if key in fields}
            silent = [key for key in own if given.get(key) == "" and fields[key].metadata.get("path")]
            table = {**own, **{key: value for key, value in given.items() if key not in silent}}
        return build(target, table, where, self.faults)


def _kind(target: Any) -> str:
    return (
        "no attrs class" if inspect.isclass(target) else "a function" if inspect.isroutine(target) else "made already"
    )


def _spellings(name: str, values: list[str]) -> list[str]:
    """Under which names below ``[links]`` the table of a link may stand."""
    return [name, *values, *(value.rpartition(":")[2] for value in (name, *values) if ":" in value)]


def _is_middleware(name: str, link: Any, faults: Faults) -> bool:
    call = link if inspect.isroutine(link) else getattr(link, "__call__", None)  # noqa: B004
    if call is None or not inspect.iscoroutinefunction(call):
        faults.add(WHERE, f"{name!r} is no middleware: it is not an async function or a class with an async __call__")
        return False
    if getattr(link, "__middleware_version__", None) != 1:
        faults.add(WHERE, f"{name!r} is not decorated; write @web.middleware above it")
        return False
    return True


def _source(target: Any) -> str:
    return f"{getattr(target, '__module__', '?')}:{getattr(target, '__qualname__', type(target).__qualname__)}"


def _check_order(entries: list[Entry], faults: Faults) -> None:
    place = {entry.name: position for position, entry in enumerate(entries)}
    for entry in entries:
        for other in _names(entry.link, "after"):
            if place.get(other, -1) > place[entry.name]:
                faults.add(WHERE, f"{entry.name!r} must stand after {other!r}")
        for other in _names(entry.link, "before"):
            if place.get(other, len(entries)) < place[entry.name]:
                faults.add(WHERE, f"{entry.name!r} must stand before {other!r}")


def _check_guard(entries: list[Entry], faults: Faults) -> None:
    guard = next((i for i, entry in enumerate(entries) if entry.name == "guard"), 0)
    for entry in entries[:guard]:
        if not entry.outer:
            faults.add(
                WHERE, f"{entry.name!r} must stand after 'guard': only links that declare outer may stand before"
            )


def _names(link: Any, rule: str) -> tuple[str, ...]:
    names = getattr(link, rule, ())
    return (names,) if isinstance(names, str) else tuple(names)

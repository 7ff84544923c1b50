"""A running application and what belongs to it beside requests: its control, the watch over its canary, its shadow, its reload.

Owns how settings become these, and what of new settings can come into force without a restart.
"""

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
from aiohttp import web

from fiedler_proxy.chain import Chain, Entry
from fiedler_proxy.control import Control, Reloaded, runtime_dir
from fiedler_proxy.effective import effective
from fiedler_proxy.heads import Announcements
from fiedler_proxy.lifecycle import EDGE, GATEWAY
from fiedler_proxy.preflight import Probe
from fiedler_proxy.router import ROUTER
from fiedler_proxy.settings import Settings
from fiedler_proxy.shadow import Budget, Shadow
from fiedler_proxy.watch import CanaryWatch

RESTART = frozenset((
    "host", "port", "tls.cert", "tls.key", "data_dir", "instance", "uvloop", "reuse_port", "runtime_dir", "dewey_url", "slot", "timeouts.keepalive",
    "timeouts.drain", "limits.request_line", "limits.header_field",
))  # fmt: skip
"""Keys that only a restart brings into force: they belong to the listener or to the process, or are for the first start (``slot``)."""

Load = Callable[[], Settings]
Compose = Callable[[Settings], Chain]


def control_of(
    app: web.Application, settings: Settings, load: Load | None = None, compose: Compose | None = None
) -> Control:
    """The control of ``app``, which was made of ``settings``; with ``load`` and ``compose`` it can be reloaded."""
    directory = runtime_dir(settings.document.runtime_dir, settings.data_dir, os.environ)
    control = Control(app, settings.document.instance, directory, base_dir=settings.base_dir)
    equip(control, settings)
    if load is not None and compose is not None:
        control.reload = Reloader(app, control, settings, load, compose)
    return control


def equip(control: Control, settings: Settings) -> None:
    """Give ``control`` the probes, the watch and the shadow that ``settings`` ask for; a shadow that runs must have been stopped."""
    document = settings.document
    control.probes = tuple(
        Probe(each.name or each.path, each.method, each.path, each.headers, each.body.encode(), each.key)
        for each in document.preflight
    )
    router = control.app.get(ROUTER)
    if router is None:
        return
    watchers: list[Callable[..., None]] = []
    control.watch = control.shadow = None
    if document.canary.guard:
        control.watch = CanaryWatch(router, document.canary.minimum)
    router.canary_watch = control.watch
    wanted = document.shadow
    if wanted.slot and wanted.share:
        budget = Budget(wanted.requests, wanted.tokens)
        control.shadow = Shadow(router, control.door, wanted.slot, wanted.share, budget, wanted.body)
        watchers.append(control.shadow)
    router.watchers = tuple(watchers)


@attrs.define(eq=False)
class Reloader:
    """Reads the configuration again and puts it in force as a whole, or says why not."""

    app: web.Application
    control: Control
    settings: Settings
    load: Load
    compose: Compose
    _entries: tuple[Entry, ...] = ()
    _started: Mapping[str, object] = attrs.field(factory=dict)
    _told: Mapping[str, object] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        chain = self.compose(self.settings)
        running = zip(chain.entries, self.app[EDGE].links, strict=True)
        self._entries = tuple(attrs.evolve(entry, link=link) for entry, link in running)
        self._started = self._told = _told(self.settings, chain)

    def __call__(self, dry: bool) -> Reloaded:
        """``Control.reload``."""
        settings = self.load()
        chain = self.compose(settings)
        gateway = self.app[GATEWAY]
        before, after, started = self._told, _told(settings, chain), self._started
        changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        entries, unmade = merged(self._entries, chain.entries)
        restart = sorted(key for key in RESTART if started.get(key) != after.get(key)) + unmade
        lines = tuple(f"{key}: {_shown(before.get(key))} -> {_shown(after.get(key))}" for key in changed)
        if dry:
            return Reloaded(lines, tuple(restart))
        gateway.pool(settings.upstream)  # where its TLS files cannot be used, nothing has changed yet
        gateway.upstream = settings.upstream
        gateway.body_limit = settings.document.limits.request_body
        gateway.say = Announcements(settings.document.via, settings.document.forwarded)
        router = self.app.get(ROUTER)
        if router is not None and settings.tables is not None:
            router.reload(settings.tables.based_on(settings.upstream))
        self.app[EDGE].pass_through(tuple(entry.link for entry in entries))
        shadow, watch = self.control.shadow, self.control.watch
        equip(self.control, settings)
        _keep_what_stays(self.control, shadow, watch)
        self._entries, self._told = entries, after
        return Reloaded(lines, tuple(restart))


def _told(settings: Settings, chain: Chain) -> dict[str, object]:
    """Every key with its value, nothing secret."""
    return dict(_flat(tomllib.loads(effective(settings, chain))))


def _keep_what_stays(control: Control, shadow: Shadow | None, watch: CanaryWatch | None) -> None:
    """A watch goes on with what it has counted, a shadow with the budget it has spent."""
    if watch is not None and control.watch is not None:
        control.watch.guard = watch.guard
        control.watch.of = watch.of
    if control.shadow is not None:
        if shadow is not None:
            control.shadow.budget.take_over(shadow.budget)
        control.shadow.start()
    if shadow is not None:
        shadow.end()


def merged(running: tuple[Entry, ...], wanted: tuple[Entry, ...]) -> tuple[tuple[Entry, ...], list[str]]:
    """The links to be in force: the running one wherever its settings are as before. A link with a ``context`` cannot be begun or changed
    while the gateway runs: what of these needs a restart."""
    old = {entry.name: entry for entry in running}
    entries: list[Entry] = []
    unmade: list[str] = []
    for entry in wanted:
        known = old.get(entry.name)
        if known is not None and _alike(known.link, entry.link):
            entries.append(known)
        elif hasattr(entry.link, "context"):
            unmade.append(f"links.{entry.table}")
            entries += [known] if known is not None else []
        else:
            entries.append(entry)
    return tuple(entries), unmade


def _alike(link: Any, other: Any) -> bool:
    """Whether two links are the same, or made of the same settings."""
    if type(link) is not type(other) or not attrs.has(type(link)):
        return link is other
    fields = [field.name for field in attrs.fields(type(link)) if field.init]
    return all(getattr(link, name) == getattr(other, name) for name in fields)


def _flat(table: Mapping[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            for number, each in enumerate(value):
                yield from _flat(each, f"{above}{key}[{number}].")
        else:
            yield above + key, value


def _shown(value: object) -> str:
    return "default" if value is None else repr(value)

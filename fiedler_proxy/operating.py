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
from fiedler_proxy.lifecycle import EDGE, GATEWAY, Link
from fiedler_proxy.preflight import Probe
from fiedler_proxy.router import ROUTER
from fiedler_proxy.settings import Settings
from fiedler_proxy.shadow import Budget, Shadow
from fiedler_proxy.watch import CanaryWatch

RESTART = (
    "host", "port", "tls.", "data_dir", "instance", "uvloop", "runtime_dir", "timeouts.keepalive", "limits.request_line",
    "limits.header_field",
)  # fmt: skip
"""Keys that only a restart brings into force: they belong to the listener or to the process."""

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

    def __call__(self, dry: bool) -> Reloaded:
        """``Control.reload``."""
        settings = self.load()
        chain = self.compose(settings)
        gateway, edge = self.app[GATEWAY], self.app[EDGE]
        before = dict(_flat(tomllib.loads(effective(self.settings, self.compose(self.settings)))))
        after = dict(_flat(tomllib.loads(effective(settings, chain))))
        changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        links, unmade = merged(edge.links, chain.entries, self.compose(self.settings).entries)
        restart = [key for key in changed if key.startswith(RESTART)] + unmade
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
        edge.pass_through(links)
        shadow, watch = self.control.shadow, self.control.watch
        equip(self.control, settings)
        _keep_what_stays(self.control, shadow, watch)
        self.settings = settings
        return Reloaded(lines, tuple(restart))


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


def merged(
    running: tuple[Link, ...], wanted: tuple[Entry, ...], before: tuple[Entry, ...]
) -> tuple[tuple[Link, ...], list[str]]:
    """The links to be in force: the running one wherever its settings are as before. A link with a ``context`` cannot be begun or changed
    while the gateway runs: what of these needs a restart."""
    old = {entry.name: (link, entry.link) for link, entry in zip(running, before, strict=False)}
    links: list[Link] = []
    unmade: list[str] = []
    for entry in wanted:
        link, as_before = old.get(entry.name, (None, None))
        if link is not None and _alike(as_before, entry.link):
            links.append(link)
        elif hasattr(entry.link, "context"):
            unmade.append(f"links.{entry.table}")
            links += [link] if link is not None else []
        else:
            links.append(entry.link)
    return tuple(links), unmade


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

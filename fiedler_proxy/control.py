"""Local control: a Unix socket of each running gateway, for its owner alone, over which it is asked and told.

Owns the socket's place and its words (HTTP and JSON, each answer an object; what cannot be done is a 4xx with ``error``). What is done is
done by the router, the gateway and whoever reloads.
"""

import asyncio
import json
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

import attrs
from aiohttp import web

from fiedler_proxy.errors import SettingsError
from fiedler_proxy.exchange import Exchange, Outcome
from fiedler_proxy.inner import InnerDoor
from fiedler_proxy.lifecycle import GATEWAY, end_exchange
from fiedler_proxy.preflight import Probe, preflight
from fiedler_proxy.router import ROUTER, Router
from fiedler_proxy.shadow import Shadow
from fiedler_proxy.slot_choice import Choice
from fiedler_proxy.sockets import private_socket
from fiedler_proxy.status import found, slots_of, status_of
from fiedler_proxy.watch import CanaryWatch

SUFFIX = ".sock"

SERVICE_DIR = Path("/run/kgb")
"""Where the units in ``deploy/`` have it."""

LOOK_SECONDS = 1.0
"""How often it is looked whether another instance has chosen a slot."""

_log = logging.getLogger("kgb.control")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refused(Exception):
    """What was asked cannot be done; the message says why."""


def runtime_dir(configured: str, data_dir: Path, environ: Mapping[str, str]) -> Path:
    """Where the sockets are: as configured, else systemd's directory for the service, the user's, or one below ``data_dir``."""
    if configured:
        return Path(configured).expanduser()
    given = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    user = environ.get("XDG_RUNTIME_DIR", "")
    return Path(user) / "kgb" if os.path.isabs(user) and os.path.isdir(user) else data_dir / "run"


def runtime_dirs(configured: str, data_dir: Path, environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where gateways may have their sockets that somebody with this configuration means: a service has systemd's directory, which only the
    service's own environment names."""
    if configured:
        return (runtime_dir(configured, data_dir, environ),)
    return tuple(dict.fromkeys((runtime_dir("", data_dir, environ), data_dir / "run", SERVICE_DIR)))


@attrs.frozen
class Reloaded:
    """What a reload has changed, or would: ``changes`` as lines, ``restart`` names what only a restart brings into force."""

    changes: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


@attrs.define(eq=False)
class Control:
    """The control of one running application. ``reload`` takes whether it is only to be shown; SettingsError holds every fault."""

    app: web.Application
    instance: str
    directory: Path
    reload: Callable[[bool], Reloaded] | None = None
    probes: tuple[Probe, ...] = ()
    base_dir: Path = Path()
    door: InnerDoor = attrs.field(factory=InnerDoor)
    shadow: Shadow | None = None
    watch: CanaryWatch | None = None
    _runner: web.AppRunner | None = None
    _path: Path | None = None
    _task: "asyncio.Task[None] | None" = None

    @property
    def router(self) -> Router:
        """The application's. Refused where its chain has none."""
        router = self.app.get(ROUTER)
        if router is None:
            raise Refused("this gateway's chain has no 'fiedler', and so no slots")
        return router

    async def start(self, runner: web.AppRunner) -> None:
        """Open the socket, and the inner door beside it. Where that cannot be, a warning says why: requests pass without."""
        try:
            await self.door.open(runner, self.directory / f"{self.instance}.{os.getpid()}.inner")
            self.app[GATEWAY].inner = self.door.token
            await self._listen()
        except OSError as error:
            _log.warning("no control socket in %s: %s", self.directory, error.strerror or error)
        if self.shadow is not None:
            self.shadow.start()
        self._task = asyncio.get_running_loop().create_task(self._look(), name="kgb-control")

    async def _listen(self) -> None:
        control = web.Application(middlewares=[_answering])
        control.add_routes(
            [
                web.get("/status", self._status),
                web.get("/slots", self._slots),
                web.post("/slots", self._choose),
                web.post("/preflight", self._preflight),
                web.post("/reload", self._reload),
                web.post("/drain", self._drain),
                web.post("/kill", self._kill),
            ]
        )
        runner = web.AppRunner(control, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        self._runner = runner
        path = self.directory / f"{self.instance}.{os.getpid()}{SUFFIX}"
        await web.SockSite(runner, private_socket(path)).start()
        self._path = path

    async def stop(self) -> None:
        """Close the socket."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.shadow is not None:
            self.shadow.end()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        await self.door.close()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            router = self.app.get(ROUTER)
            if router is not None:
                router.refresh()

    # What can be asked.

    async def _status(self, _: web.Request) -> web.Response:
        said: dict[str, object] = {"instance": self.instance, **status_of(self.app)}
        if self.shadow is not None:
            left = self.shadow.budget.left(self.shadow.clock())
            said["shadow"] = {
                "slot": self.shadow.slot, "sent": self.shadow.sent, "dropped": self.shadow.dropped,
                "failed": self.shadow.failed, "requests_left": left[0], "tokens_left": left[1],
            }  # fmt: skip
        guard = self.watch.guard if self.watch is not None else None
        if guard is not None:
            said["guard"] = {
                measure.name: {"seen": measure.seen, "bad": measure.bad}
                for measure in (guard.failures, guard.breaks, guard.slow)
            }
        return _json(said)

    async def _slots(self, _: web.Request) -> web.Response:
        return _json({**slots_of(self.router), "log": [attrs.asdict(each) for each in self.router.choice.log]})

    async def _choose(self, request: web.Request) -> web.Response:
        asked = await _asked(request)
        router, action = self.router, _text(asked, "action")
        by, identity = _text(asked, "by") or "kgb slot", _text(asked, "id")
        slot = router.known(_text(asked, "slot")) if action != "rollback" else ""
        if action == "use":
            await self._check(slot, force=asked.get("force") is True)
            change: Callable[[Choice], Choice] = lambda choice: choice.using(slot, by)  # noqa: E731
        elif action == "canary":
            await self._check(slot, force=asked.get("force") is True)
            share = asked.get("share")
            if not isinstance(share, (int, float)):
                raise Refused("a canary needs a share, like 5%")
            change = lambda choice: choice.with_canary(slot, float(share), by)  # noqa: E731
        elif action == "rollback":
            change = lambda choice: choice.rolled_back(by, _text(asked, "why"))  # noqa: E731
        else:
            raise Refused(f"{action!r} is none of use, canary, rollback")
        await router.change(change, identity)
        choice = router.choice
        _log.info("slot: %s %s by %s: active %s, canary %s", action, slot, by, choice.active, choice.canary or "none")
        return _json(slots_of(router))

    async def _check(self, slot: str, *, force: bool) -> None:
        """A slot that fails its preflight is not used."""
        if force or not self.probes or slot == self.router.choice.active:
            return
        failed = [finding for finding in await self._probe(slot) if finding["differences"]]
        if failed:
            told = "; ".join(f"{finding['probe']}: {', '.join(finding['differences'])}" for finding in failed)  # type: ignore[arg-type]
            raise Refused(
                f"{slot} does not pass its preflight: {told}. Nothing has changed; --force uses it nevertheless"
            )

    async def _probe(self, slot: str) -> list[dict[str, object]]:
        active = self.router.choice.active
        return [attrs.asdict(each) for each in await preflight(self.door, self.probes, slot, active, self.base_dir)]

    async def _preflight(self, request: web.Request) -> web.Response:
        slot = self.router.known(_text(await _asked(request), "slot"))
        if not self.probes:
            raise Refused("no [[preflight]] is configured: there is nothing to compare")
        return _json({"slot": slot, "active": self.router.choice.active, "findings": await self._probe(slot)})

    async def _reload(self, request: web.Request) -> web.Response:
        if self.reload is None:
            raise Refused("this gateway was started without a way to read its configuration again")
        dry = (await _asked(request)).get("dry_run") is True
        try:
            done = self.reload(dry)
        except SettingsError as error:
            return _json(
                {"error": "the configuration is not usable, and nothing has changed", "faults": list(error.faults)}, 422
            )
        return _json({"changes": list(done.changes), "restart": list(done.restart), "dry_run": dry})

    async def _drain(self, _: web.Request) -> web.Response:
        live = len(self.app[GATEWAY].live)
        asyncio.get_running_loop().call_later(0.05, partial(os.kill, os.getpid(), signal.SIGTERM))
        return _json({"draining": True, "exchanges": live})

    async def _kill(self, request: web.Request) -> web.Response:
        identity = _text(await _asked(request), "id")
        if not identity:
            raise Refused("an id is needed, or its beginning")
        exchange = found(self.app, identity)
        if exchange is None:
            raise Refused(f"no live exchange has an id that begins with {identity!r}")
        end(self.app, exchange)
        return _json({"killed": exchange.id})


def end(app: web.Application, exchange: Exchange) -> None:
    """End a live exchange: its caller's stream is cut, never completed."""
    request = app[GATEWAY].live.get(exchange)
    if request is not None:
        end_exchange(exchange, request, Outcome.GATEWAY_STOPPED)


@web.middleware
async def _answering(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except (Refused, ValueError) as error:
        return _json({"error": str(error)}, 409)
    except OSError as error:
        return _json({"error": f"it cannot be kept on disk, and nothing has changed: {error.strerror or error}"}, 500)


async def _asked(request: web.Request) -> dict[str, object]:
    said = json.loads(await request.read() or b"{}")
    if not isinstance(said, dict):
        raise Refused("the body must be an object")
    return said


def _text(asked: Mapping[str, object], name: str) -> str:
    value = asked.get(name, "")
    if not isinstance(value, str):
        raise Refused(f"{name} must be a text")
    return value


def _json(said: Mapping[str, object], status: int = 200) -> web.Response:
    return web.json_response(said, status=status)

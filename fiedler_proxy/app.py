"""Fiedler as its own server, and the step from settings to an application that every server shares."""

import socket
from collections.abc import Mapping

import attrs
from aiohttp import web

from fiedler_proxy.chain import Chain, compose
from fiedler_proxy.config import Faults
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.heads import Announcements
from fiedler_proxy.lifecycle import Gateway, create_application
from fiedler_proxy.pool import tls_context
from fiedler_proxy.relay import Relay
from fiedler_proxy.router import BLUE, ROUTER, Router
from fiedler_proxy.settings import FIEDLER, KEYS_FILE, Draft, Settings, read
from fiedler_proxy.slot_choice import ChoiceFile


def load(flags: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Fiedler's settings, its chain checked with them. SettingsError holds every fault of both."""
    faults = Faults()
    draft = read(FIEDLER, flags or {}, environ or {}, faults)
    compose_draft(draft, draft.settings.document.chain, faults, gateway="fiedler")
    return checked(draft, faults)


def create_app(settings: Settings) -> web.Application:
    """Fiedler as an aiohttp application. SettingsError when the chain cannot be composed."""
    return build_app(settings, compose_chain(settings))


def compose_chain(settings: Settings) -> Chain:
    """Fiedler's chain. SettingsError holds every fault."""
    return compose_settings(settings, settings.document.chain, gateway="fiedler")


def compose_settings(settings: Settings, names: tuple[str, ...], *, gateway: str) -> Chain:
    """The chain of ``names`` with what ``settings`` say of its links. SettingsError holds every fault."""
    faults = Faults()
    chain = compose_draft(Draft(settings), names, faults, gateway=gateway)
    if faults.found:
        raise SettingsError(faults.found)
    return chain


def compose_draft(
    draft: Draft, names: tuple[str, ...], faults: Faults, *, gateway: str, known: tuple[str, ...] = ()
) -> Chain:
    """Compose as far as ``draft`` goes: a fault in a setting must not hide those in the chain.

    ``gateway``: what the health answer calls this server; ``known``: names that are no links and may be meant.
    """
    settings, own = draft.settings, Faults()
    chain = compose(
        names,
        settings.document.links,
        own,
        defaults=link_defaults(settings, gateway),
        known=known,
        base=settings.base_dir,
    )
    unmade = "auth" in names and chain.find("auth") is None
    if draft.complete and not unmade:
        _check_exposure(settings, chain, own)
    _check_files(settings, own)
    draft.place(own, faults)
    return chain


def link_defaults(settings: Settings, gateway: str) -> dict[str, dict[str, object]]:
    """What links get from the settings where their own table is silent."""
    document = settings.document
    names = {socket.gethostname().lower(), settings.host.lower()} - {""}
    hosts = tuple(host.lower() for host in document.allowed_hosts) + tuple(sorted(names))
    health = attrs.asdict(document.health)
    return {
        "guard": {"hosts": hosts, "origins": document.allowed_origins},
        "health": {**health, "gateway": gateway},
        "fiedler_key": {"base": str(settings.base_dir)},
        "auth": {"keys_file": str(settings.base_dir / KEYS_FILE)},
        "dewey_tap": {"data_dir": str(document.data_dir), "instance": document.instance},
    }


def _check_exposure(settings: Settings, chain: Chain, faults: Faults) -> None:
    if settings.loopback or any(getattr(link, "requires_key", False) for link in chain.links):
        return
    if chain.find("auth") is not None:
        remedy = "make a key with `kgb keys create NAME` (the auth link then asks for one)"
    elif chain.find("fiedler_key") is not None:
        remedy = "say where its key is read with [links.fiedler_key] keys"
    else:
        remedy = "put 'auth' into the chain and make a key with `kgb keys create NAME`"
    faults.add(
        "host",
        f"{settings.host!r} can be reached from other machines and nobody would be asked for a key; "
        f"{remedy}, or listen on 127.0.0.1",
    )


def _check_files(settings: Settings, faults: Faults) -> None:
    """The TLS files are read at the start; what is wrong with them belongs to the same message as all else."""
    try:
        settings.ssl_context()
    except SettingsError as error:
        faults.found.extend(error.faults)
    if settings.upstream.ca_file:
        try:
            tls_context(settings.upstream)
        except SettingsError as error:
            faults.found.extend(error.faults)


def checked(draft: Draft, faults: Faults) -> Settings:
    """The settings, or SettingsError with every fault."""
    if faults.found:
        raise SettingsError(faults.found)
    return draft.settings


def build_app(settings: Settings, chain: Chain, *, keeps_choice: bool = True) -> web.Application:
    """The application of ``settings`` with ``chain`` in front of the relay. ``keeps_choice``: which slot is active is read from the data
    directory, and kept there."""
    document = settings.document
    gateway = Gateway(
        settings.upstream,
        document.limits.request_body,
        Announcements(document.via, document.forwarded),
        name=settings.program,
    )
    gateway.pool(settings.upstream)  # its TLS files are a matter of the start, not of the first request
    options: dict[str, object] = {
        "keepalive_timeout": document.timeouts.keepalive,
        "max_line_size": document.limits.request_line,
        "max_field_size": document.limits.header_field,
    }
    app = create_application(gateway, chain.links, Relay(gateway), server_options=options)
    if settings.tables is not None:
        tables = settings.tables.based_on(settings.upstream)
        file = choice_file(settings) if keeps_choice else None
        app[ROUTER] = Router(tables, file, document.slot)
    return app


def choice_file(settings: Settings) -> ChoiceFile:
    """Where the chosen slot is kept. In front of Fiedler's routes the environment names the base URL; behind them it is no choice
    between slots."""
    environment = settings.environment if settings.document.slot == BLUE else ""
    path = settings.data_dir / f"slots-{settings.program}.json"
    return ChoiceFile(path, settings.document.instance, environment, BLUE)

"""Fiedler as its own server, and the step from settings to an application that every server shares."""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from fiedler_proxy.chain import Chain, compose
from fiedler_proxy.config import Faults
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.heads import Announcements
from fiedler_proxy.lifecycle import Gateway, create_application
from fiedler_proxy.relay import Relay
from fiedler_proxy.settings import FIEDLER, KEYS_FILE, Draft, Settings, read


def load(flags: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Fiedler's settings, its chain checked with them. SettingsError holds every fault of both."""
    faults = Faults()
    draft = read(FIEDLER, flags or {}, environ or {}, faults)
    compose_draft(draft, draft.chain, faults, gateway="fiedler")
    return checked(draft, faults)


def create_app(settings: Settings) -> web.Application:
    """Fiedler as an aiohttp application. SettingsError when the chain cannot be composed."""
    return build_app(settings, compose_settings(settings, settings.document.chain, gateway="fiedler"))


def compose_chain(settings: Settings) -> Chain:
    """Fiedler's chain. SettingsError holds every fault."""
    return compose_settings(settings, settings.document.chain, gateway="fiedler")


def compose_settings(settings: Settings, names: tuple[str, ...], *, gateway: str) -> Chain:
    """The chain of ``names`` with what ``settings`` say of its links. SettingsError holds every fault."""
    faults = Faults()
    draft = Draft(names, settings.document.links, settings, settings.sources)
    chain = compose_draft(draft, names, faults, gateway=gateway)
    if faults.found:
        raise SettingsError(faults.found)
    return chain


def compose_draft(draft: Draft, names: tuple[str, ...], faults: Faults, *, gateway: str) -> Chain:
    """Compose as far as ``draft`` goes: a fault in a setting must not hide those in the chain."""
    settings, own = draft.settings, Faults()
    defaults = link_defaults(settings, gateway) if settings is not None else {}
    chain = compose(names, _resolved(draft), own, defaults=defaults)
    if settings is not None:
        _check_exposure(settings, chain, own)
    draft.place(own, faults)
    return chain


def link_defaults(settings: Settings, gateway: str) -> dict[str, dict[str, object]]:
    """What links get from the settings where their own table is silent."""
    document = settings.document
    health = document.health
    names = {socket.gethostname().lower(), settings.host.lower()} - {""}
    hosts = tuple(host.lower() for host in document.allowed_hosts) + tuple(sorted(names))
    return {
        "guard": {"hosts": hosts, "origins": document.allowed_origins},
        "health": {"health": health.health, "live": health.live, "ready": health.ready, "gateway": gateway},
        "auth": {"keys_file": str(settings.base_dir / KEYS_FILE)},
    }


def _resolved(draft: Draft) -> dict[str, Any]:
    """The links' tables; a relative keys file is relative to the configuration, as for ``kgb keys``."""
    tables: dict[str, Any] = dict(draft.links)
    auth = tables.get("auth")
    if draft.settings is not None and isinstance(auth, Mapping) and isinstance(auth.get("keys_file"), str):
        named = auth["keys_file"] and draft.settings.base_dir / Path(auth["keys_file"]).expanduser()
        tables["auth"] = {**auth, "keys_file": str(named)}
    return tables


def _check_exposure(settings: Settings, chain: Chain, faults: Faults) -> None:
    if settings.loopback or any(getattr(link, "requires_key", False) for link in chain.links):
        return
    if chain.find("auth") is not None:
        remedy = "make a key with `kgb keys create NAME` (the auth link then asks for one)"
    else:
        remedy = "put 'auth' into the chain and make a key with `kgb keys create NAME`"
    faults.add(
        "host",
        f"{settings.host!r} can be reached from other machines and nobody would be asked for a key; "
        f"{remedy}, or listen on 127.0.0.1",
    )


def checked(draft: Draft, faults: Faults) -> Settings:
    """The settings, or SettingsError with every fault."""
    if faults.found or draft.settings is None:
        raise SettingsError(faults.found)
    return draft.settings


def build_app(settings: Settings, chain: Chain) -> web.Application:
    """The application of ``settings`` with ``chain`` in front of the relay."""
    document = settings.document
    gateway = Gateway(
        settings.upstream,
        document.limits.request_body,
        Announcements(document.via, document.forwarded),
    )
    gateway.pool(settings.upstream)  # its TLS files are a matter of the start, not of the first request
    options: dict[str, object] = {
        "keepalive_timeout": document.timeouts.keepalive,
        "max_line_size": document.limits.request_line,
        "max_field_size": document.limits.header_field,
    }
    return create_application(gateway, chain.links, Relay(gateway), server_options=options)

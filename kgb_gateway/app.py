"""KGB as an aiohttp application: for ``kgb serve``, and for tests that run the gateway inside pytest-aiohttp."""

from collections.abc import Mapping

from aiohttp import web

from fiedler_proxy.app import build_app, checked
from fiedler_proxy.config import Faults
from fiedler_proxy.settings import Settings, read
from kgb_gateway.compose import check_chain, compose_chain
from kgb_gateway.settings import KGB, TAP


def load(flags: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """KGB's settings from ``flags`` (dotted keys, ``config`` for the file) over ``environ`` over the file.

    SettingsError holds every fault of the settings and of the chain. Nothing is read from the process's own
    environment unless it is given.
    """
    faults = Faults()
    draft = read(KGB, flags or {}, environ or {}, faults)
    check_chain(draft, faults)
    return checked(draft, faults)


def create_app(settings: Settings | None = None, **flags: object) -> web.Application:
    """The gateway of ``settings``, or of ``flags`` (``create_app(upstream="http://127.0.0.1:9")``).

    It behaves the same under AppRunner, ``web.run_app`` and pytest-aiohttp's ``aiohttp_client``. SettingsError holds
    every fault. With flags alone nothing is recorded unless ``data_dir`` (or a ``chain``) says so: a test must not write
    where the user's own gateway does.
    """
    keeps_choice = settings is not None or bool({"data_dir", "config"} & flags.keys())
    if settings is None:
        if not {"data_dir", "chain", "config"} & flags.keys():
            flags["chain"] = tuple(name for name in KGB.chain if name != TAP)
        settings = load(flags)
    return build_app(settings, compose_chain(settings), keeps_choice=keeps_choice)

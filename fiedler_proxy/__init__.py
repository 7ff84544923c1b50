"""Provider routing and upstream streaming. What is named here is for users and authors; nothing is loaded before it is
asked for.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fiedler_proxy.app import create_app, load
    from fiedler_proxy.errors import ExchangeError, Fault, SettingsError
    from fiedler_proxy.exchange import Direction, Exchange, Observer, Outcome
    from fiedler_proxy.lifecycle import EXCHANGE
    from fiedler_proxy.server import Handler
    from fiedler_proxy.settings import Settings

__all__ = [
    "EXCHANGE",
    "Direction",
    "Exchange",
    "ExchangeError",
    "Fault",
    "Handler",
    "Observer",
    "Outcome",
    "Settings",
    "SettingsError",
    "create_app",
    "load",
]

_MODULES = {
    "app": ("create_app", "load"),
    "errors": ("ExchangeError", "Fault", "SettingsError"),
    "exchange": ("Direction", "Exchange", "Observer", "Outcome"),
    "lifecycle": ("EXCHANGE",),
    "server": ("Handler",),
    "settings": ("Settings",),
}


def __getattr__(name: str) -> object:
    """The public name ``name``, from the module that owns it."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

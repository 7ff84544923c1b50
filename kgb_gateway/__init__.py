"""The gateway between coding agents and model APIs.

``create_app`` gives the gateway as an aiohttp application, for tests inside pytest-aiohttp. What authors of links need is
in ``fiedler_proxy``. Nothing is loaded before it is asked for.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kgb_gateway.app import create_app, load

__all__ = ["create_app", "load"]


def __getattr__(name: str) -> object:
    """The public name ``name``, from the module that owns it."""
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.app"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

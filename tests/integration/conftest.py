"""Which event loops the integration tests run on."""

import asyncio
import os
from collections.abc import Callable

import pytest

try:
    import uvloop
except ImportError:  # the extra "speed" is not installed
    uvloop = None  # type: ignore[assignment]

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, LoopFactory]:
    """asyncio's own loop; uvloop as well for modules that say ``BOTH_LOOPS = True``.

    How a connection was lost is told differently by the two. ``KGB_TEST_UVLOOP=1`` runs every test on uvloop, but for
    modules that say ``BOTH_LOOPS = False``: they move the clock of asyncio's loop.
    """
    own: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop}
    both = getattr(item.module, "BOTH_LOOPS", None) if isinstance(item, pytest.Function) else None
    if uvloop is None or both is False:
        return own
    fast: dict[str, LoopFactory] = {"uvloop": uvloop.new_event_loop}
    if os.environ.get("KGB_TEST_UVLOOP"):
        return fast
    return own | fast if both else own


@pytest.fixture
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the rest of an upload that nobody will send."""
    monkeypatch.setattr("fiedler_proxy.server.LINGER", 0.05)

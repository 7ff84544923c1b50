"""What is KGB's own in the settings: its port, its chain, the names the origin system gave its environment, and where
the keys of its callers are.
"""

from collections.abc import Mapping
from pathlib import Path

from fiedler_proxy.settings import KEYS_FILE, Program, Settings

KGB = Program(
    "kgb",
    8089,
    ("request_id", "access_log", "dewey_tap", "auth", "fiedler"),
    {
        "KGB_HOST": "host",
        "KGB_PORT": "port",
        "KGB_DATA_DIR": "data_dir",
        "KGB_INSTANCE": "instance",
        "DEWEY_URL": "dewey_url",
    },
    ("KGB_TARGET_URL", "ANTHROPIC_PROXY_URL", "ANTHROPIC_BASE_URL"),
    "KGB_CONFIG",
)
"""KGB as a program: ``https://api.anthropic.com`` as upstream is the origin's blue, a Fiedler URL its green."""

SINKS = ("dewey+ws://", "dewey+wss://")
"""How the URL of a sink begins. ``dewey_url`` may be something else in an old environment: then it is none."""

TAP = "dewey_tap"
"""The name of the link that records."""

_TAP_TABLES = (TAP, "kgb_gateway.middlewares.dewey_tap:DeweyTap", "DeweyTap")
_AUTH_TABLES = ("auth", "kgb_gateway.middlewares.auth:Auth", "Auth")


def keys_file(settings: Settings) -> Path:
    """Where ``auth`` looks for the keys of callers: whoever writes them must come to the same place."""
    tables = (settings.document.links.get(name) for name in _AUTH_TABLES)
    table = next((table for table in tables if isinstance(table, Mapping)), {})
    named = table.get("keys_file")
    return settings.base_dir / (Path(named).expanduser() if isinstance(named, str) and named else KEYS_FILE)


def tap_table(settings: Settings) -> Mapping[str, object]:
    """What the configuration says of ``dewey_tap``: whoever reads the record must come to the same place."""
    tables = (settings.document.links.get(name) for name in _TAP_TABLES)
    return next((table for table in tables if isinstance(table, Mapping)), {})


def sink_in(settings: Settings) -> str:
    """The existing Dewey to which conversations go too, "" for none."""
    named = tap_table(settings).get("sink")
    sink = named if isinstance(named, str) and named else settings.document.dewey_url
    return sink if sink.startswith(SINKS) else ""


def records(settings: Settings) -> bool:
    """Whether ``dewey_tap`` is in the chain."""
    return any(name in _TAP_TABLES for name in settings.document.chain)

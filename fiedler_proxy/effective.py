"""What is in force, as a configuration file that says the same.

Owns how settings are shown: as TOML, each with its source, nothing secret. It reads and decides nothing.
"""

import datetime as dt
import enum
import re
from collections.abc import Mapping

import attrs

from fiedler_proxy.chain import Chain
from fiedler_proxy.config import keys_of, redacted, visible
from fiedler_proxy.settings import Document, Settings

_INHERITED: Mapping[str, Mapping[str, str]] = {
    "guard": {"hosts": "allowed_hosts", "origins": "allowed_origins"},
    "health": {"health": "health.health", "live": "health.live", "ready": "health.ready"},
}
"""Keys of links, and the settings they get where their own table is silent."""


def effective(settings: Settings, chain: Chain | None = None) -> str:
    """The effective configuration as TOML, each key's source as a comment, secrets redacted."""
    lines = [f"# {settings.program}: the effective configuration"]
    tables: list[str] = []
    for key in keys_of(Document):
        value = getattr(settings.document, key)
        if attrs.has(type(value)):
            tables += ["", f"[{key}]", *_lines(visible(value), settings.sources, f"{key}.")]
        elif key != "links":
            lines += _lines({key: redacted(value)}, settings.sources, "")
    for entry in chain.entries if chain is not None else ():
        if entry.settings():
            sources = {
                f"links.{entry.table}.{key}": settings.sources[source]
                for key, source in _INHERITED.get(entry.name, {}).items()
                if source in settings.sources
            }
            tables += ["", f"[links.{_key(entry.table)}]"]
            tables += _lines(entry.settings(), {**sources, **settings.sources}, f"links.{entry.table}.")
    return "\n".join(lines + tables) + "\n"


def _lines(table: Mapping[str, object], sources: Mapping[str, str], above: str) -> list[str]:
    """What is None cannot be written, and is what it would be if it were left out."""
    return [
        f"{_key(key)} = {_toml(value)}  # {_on_one_line(sources.get(above + key, 'default'))}"
        for key, value in table.items()
        if value is not None
    ]


def _key(key: str) -> str:
    """``key`` as TOML writes it, in quotes where it needs them."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)


def _toml(value: object) -> str:
    """``value`` as TOML. What TOML has no form for is written as its text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, enum.Enum):
        return _toml(value.value)
    if isinstance(value, (int, float)):
        return repr(value)
    if attrs.has(type(value)):
        return _toml(visible(value))
    if isinstance(value, (list, tuple, frozenset)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, Mapping):
        pairs = (f"{_key(str(key))} = {_toml(item)}" for key, item in value.items() if item is not None)
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    return "".join(_ESCAPED.get(c, c) if c.isprintable() else f"\\U{ord(c):08x}" for c in str(value)).join('""')


_ESCAPED = {'"': '\\"', "\\": "\\\\"}


def _on_one_line(text: str) -> str:
    """``text`` without what would end a line, or draw on a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)

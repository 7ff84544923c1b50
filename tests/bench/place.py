"""What a server under test is described by: where it lives, and the command that starts it. It starts nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs


class Missing(Exception):
    """This server cannot run here; the text says why. The bench goes on without it."""


class StartError(Exception):
    """A server that should run did not; the text ends with what it printed."""


@attrs.frozen
class Place:
    """Where one server lives: its own directory, its port, the upstream's port."""

    directory: Path
    port: int
    upstream: int

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path


@attrs.frozen
class Command:
    """What is started, and the headers that callers must send to it.

    ``environment``: variables beside ours. ``spoken``: it relays nothing but the Messages API, so that every request is made in that
    shape (shapes.py). ``patience``: seconds until it must answer.
    """

    argv: Sequence[str]
    headers: dict[str, str] = attrs.Factory(dict)
    environment: Mapping[str, str] = attrs.Factory(dict)
    spoken: bool = False
    patience: float = 15.0

"""Writing recorded conversations into files, in formats of ours and of others.

Owns the list of formats. Every writer streams: it goes through the conversations once, has one turn in memory, and writes as it
goes. None closes what it writes to, and none knows a store.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import BinaryIO

from kgb_gateway.dewey.document import Conversation, Viewer

from . import claude, har, html, jsonl, markdown, raw

Progress = Callable[[int], None]
"""Hears how many turns are written, after each."""

Write = Callable[[Iterable[Conversation], BinaryIO, Progress | None], None]


def writers(view: Viewer) -> Mapping[str, Write]:
    """The writers by the names of their formats. ``view`` tells what a block is, to those that need it."""
    return {
        "jsonl": jsonl.write,
        "markdown": partial(markdown.write, view),
        "html": partial(html.write, view),
        "har": har.write,
        "claude": partial(claude.write, view),
        "raw": raw.write,
    }

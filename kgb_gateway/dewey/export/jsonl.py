"""JSONL: a line a turn, with all that is known of it. ``imports.read_jsonl`` reads it again."""

from collections.abc import Callable, Iterable
from typing import BinaryIO

from kgb_gateway.dewey.document import Conversation
from kgb_gateway.dewey.texts import json_text
from kgb_gateway.dewey.turn_json import dump


def write(conversations: Iterable[Conversation], out: BinaryIO, progress: Callable[[int], None] | None = None) -> None:
    """Write all turns to ``out``. Each line is whole in itself, and says which conversation it belongs to."""
    written = 0
    for conversation in conversations:
        for turn in conversation.turns:
            out.write(json_text(dump(turn, conversation)).encode("utf-8") + b"\n")
            written += 1
            if progress is not None:
                progress(written)

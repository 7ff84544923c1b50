"""The bytes as they passed: a line of JSON an exchange, bodies in base64. Credentials in heads are replaced already."""

import base64
from collections.abc import Callable, Iterable
from typing import BinaryIO

from kgb_gateway.dewey.document import Conversation, Turn
from kgb_gateway.dewey.texts import json_text, timestamp
from kgb_gateway.dewey.transcripts.model import Json

FORMAT = "kgb-raw-1"


def write(conversations: Iterable[Conversation], out: BinaryIO, progress: Callable[[int], None] | None = None) -> None:
    """Write all exchanges to ``out``. A body that is not kept is null, with its size and hash all the same."""
    written = 0
    for conversation in conversations:
        for turn in conversation.turns:
            out.write(json_text(line(turn)).encode("utf-8") + b"\n")
            written += 1
            if progress is not None:
                progress(written)


def line(turn: Turn) -> dict[str, Json]:
    """What is written of one exchange."""
    return {
        "format": FORMAT,
        "id": turn.exchange,
        "at": timestamp(turn.at),
        "outcome": turn.outcome,
        "partial": turn.partial,
        "transformed": turn.transformed,
        "notes": list(turn.notes),
        "upstream": turn.upstream,
        "request": {
            "method": turn.method,
            "target": turn.target,
            "headers": [list(pair) for pair in turn.request_headers],
            **_body(turn.request_body, turn.request_size, turn.request_sha256),
        },
        "response": {
            "status": turn.status,
            "headers": [list(pair) for pair in turn.response_headers],
            **_body(turn.response_body, turn.response_size, turn.response_sha256),
        },
    }


def _body(body: bytes | None, size: int, sha256: str) -> dict[str, Json]:
    encoded = base64.b64encode(body).decode("ascii") if body is not None else None
    return {"body": encoded, "size": size, "sha256": sha256}

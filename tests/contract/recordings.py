"""The recorded replies beside the project (``../shared/streams``), as requests and bytes that could have been on the wire."""

import json
from pathlib import Path

import attrs

from kgb_gateway.dewey.transcripts.detect import Surface, detect
from kgb_gateway.dewey.transcripts.model import Dialect, Reply
from kgb_gateway.dewey.transcripts.reader import ReplyReader

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "streams"
REPLIES = sorted(FOLDER.rglob("*.txt")) + sorted(FOLDER.rglob("*.json"))
STREAMS = [path for path in REPLIES if path.name.endswith(".chunks.txt")]
MISSING = f"no recorded replies at {FOLDER}"

_PATHS = {
    "anthropic": "/v1/messages?beta=true",
    "completion_": "/v1/completions",
    "responses_": "/v1/responses",
    "azure": "/openai/v1/responses",
    "interactions_": "/v1beta/interactions",
    "google": "/v1beta/models/gemini-x:streamGenerateContent?alt=sse",
    "chat_": "/v1/chat/completions",
}


@attrs.frozen
class Recording:
    """One file. ``events``: the JSON of each event of a stream, [] for a body that was not streamed."""

    surface: Surface
    content_type: str
    wire: bytes
    events: tuple[object, ...]

    @property
    def dialect(self) -> Dialect:
        return self.surface.dialect

    def read(self, pieces: list[bytes] | None = None, *, whole: bool = True) -> Reply:
        reader = ReplyReader(self.surface, [("Content-Type", self.content_type)])
        for piece in pieces if pieces is not None else [self.wire]:
            reader.feed(piece)
        return reader.finish(whole)


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def target_of(path: Path) -> str:
    for start in ("completion_", "responses_", "interactions_"):
        if path.name.startswith(start):
            return _PATHS[start]
    for start in ("anthropic", "azure", "google"):
        if path.parent.name.startswith(start):
            return _PATHS[start]
    return _PATHS["chat_"]


def lenient(line: str) -> object:
    """A line's JSON; one recording was written by hand and lacks a bracket at the end of two lines."""
    try:
        return json.loads(line)
    except ValueError:
        return json.loads(line + "}")


def load(path: Path, newline: str = "\n") -> Recording:
    target = target_of(path)
    surface = detect("POST", target, [], [])
    assert surface is not None
    if path.suffix == ".json":
        return Recording(surface, "application/json", path.read_bytes(), ())
    text = path.read_text(encoding="utf-8")
    if not path.name.endswith(".chunks.txt"):
        data = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
        return Recording(
            surface, "text/event-stream; charset=utf-8", text.replace("\n", newline).encode(), tuple(map(lenient, data))
        )
    lines = [line for line in text.split("\n") if line.strip()]
    wire = "".join(f"data: {line}{newline}{newline}" for line in lines)
    if surface.dialect in (Dialect.OPENAI_CHAT, Dialect.OPENAI_COMPLETIONS):
        wire += f"data: [DONE]{newline}{newline}"
    return Recording(surface, "text/event-stream", wire.encode(), tuple(map(lenient, lines)))

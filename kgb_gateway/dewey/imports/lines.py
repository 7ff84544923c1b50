"""Lines of JSON, one object each, and what is wrong with those that are not; our own JSONL.

Pure. Owns how a bad line is told: never by an exception, which would cost the rest of the file.
"""

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping

import attrs

from kgb_gateway.dewey.document import Conversation, Turn
from kgb_gateway.dewey.transcripts.model import Json
from kgb_gateway.dewey.turn_json import NotATurn, load, load_head

NAMESPACE = uuid.UUID("6f0e8f6a-7a1c-5c3e-9d55-0b6a3c1f4e2d")
"""Exchange ids of imported turns are version 5 UUIDs in here. It never changes: it makes an import idempotent."""


@attrs.frozen
class Fault:
    """What was not read. ``line``: its number from 1 (of HAR: the number of its entry)."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


OnFault = Callable[[Fault], None]


def stable_id(*names: str) -> str:
    """The exchange id that belongs to these names, the same every time."""
    joined = "\x1f".join(names)
    return str(uuid.uuid5(NAMESPACE, joined.encode("utf-8", "surrogatepass").hex()))


def parse(text: str | bytes) -> Json:
    """JSON, with every way to fail as a ValueError (bad UTF-8, endless digits and nesting too deep as well)."""
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except UnicodeDecodeError as fault:
        raise ValueError(f"not UTF-8 at byte {fault.start}") from None
    except json.JSONDecodeError as fault:
        raise ValueError(f"not JSON: {fault.msg} at character {fault.pos}") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def objects(lines: Iterable[str | bytes], on_fault: OnFault) -> Iterator[tuple[int, Mapping[str, Json]]]:
    """Line numbers and objects; empty lines are passed over."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = parse(line)
        except ValueError as fault:
            on_fault(Fault(number, str(fault)))
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            on_fault(Fault(number, "not a JSON object"))


def read_jsonl(
    lines: Iterable[str | bytes],
    on_fault: OnFault,
    on_conversation: Callable[[Conversation], None] | None = None,
) -> Iterator[Turn]:
    """The turns of an export of ours (``export.jsonl``), each with the exchange id that it had.

    ``on_conversation`` hears of each conversation (without turns) before its first turn, again where it goes on after another's.
    """
    last: Conversation | None = None
    for number, value in objects(lines, on_fault):
        try:
            turn = load(value)
        except NotATurn as fault:
            on_fault(Fault(number, str(fault)))
            continue
        head = load_head(value)
        if head is not None and head != last and on_conversation is not None:
            on_conversation(head)
        last = head
        yield turn

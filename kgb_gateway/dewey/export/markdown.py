"""Markdown: for notes, issues and reading. Prose stays Markdown, inside a quotation that it cannot leave; everything else is fenced.

Owns what recorded text may do in a Markdown reader: nothing. Text that holds HTML, an image (which would be fetched from wherever it
says) or a link that leads elsewhere than to the web is fenced too, and shown as it was written.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import attrs

from kgb_gateway.dewey.document import Conversation, Instructions, Turn, Viewer, look
from kgb_gateway.dewey.media import media
from kgb_gateway.dewey.show import Style, head, marks
from kgb_gateway.dewey.texts import json_text, one_line, things, visible
from kgb_gateway.dewey.transcripts.model import Block, Dialect, Kind, Message, View

_ACTIVE = re.compile(r"<[A-Za-z/!?]|!\[|\]\s*[(:](?!https?://|#|mailto:)", re.IGNORECASE)
_SPECIAL = re.compile(r"([\\`*_\[\]<>#|~&!$])")
_RUNS = re.compile("`+")


def write(
    view: Viewer,
    conversations: Iterable[Conversation],
    out: BinaryIO,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write the conversations to ``out``, one after the other."""
    written = 0
    page = _Page(view)
    for conversation in conversations:
        _put(out, page.title(conversation))
        before: Instructions | None = None
        for number, turn in enumerate(conversation.turns, 1):
            _put(out, page.turn(number, turn, before))
            before = turn.instructions
            written += 1
            if progress is not None:
                progress(written)


def _put(out: BinaryIO, parts: Iterable[str]) -> None:
    out.writelines(part.encode("utf-8") + b"\n\n" for part in parts)


def inline(text: str, width: int = 200) -> str:
    """``text`` on one line, meaning nothing in Markdown."""
    return _SPECIAL.sub(r"\\\1", one_line(text, width))


def fence(text: str, info: str = "") -> str:
    """``text`` as a code block that nothing in it can end: its fence is longer than any run of backticks inside."""
    lines = _lines(text)
    longest = max((len(run) for line in lines for run in _RUNS.findall(line)), default=0)
    ticks = "`" * max(3, longest + 1)
    return "\n".join([ticks + info, *lines, ticks])


def prose(text: str) -> str:
    """``text`` as Markdown inside a quotation, or fenced where it would do more than be read."""
    lines = _lines(text)
    if any(_ACTIVE.search(line) for line in lines):
        return fence(text, "text")
    return "\n".join(f"> {line}".rstrip() for line in lines)


def _lines(text: str) -> list[str]:
    return [visible(line.removesuffix("\r")) for line in text.split("\n")]


@attrs.frozen
class _Page:
    view: Viewer

    def title(self, of: Conversation) -> Iterator[str]:
        yield f"# {inline(of.title) or f'Conversation {inline(of.id)}'}"
        facts = (
            ("kind", of.kind),
            ("agent", of.agent),
            ("project", of.project),
            ("session", of.session),
            ("id", of.id),
        )
        yield "\n".join(f"- {name}: {inline(value)}" for name, value in facts if value)

    def turn(self, number: int, turn: Turn, before: Instructions | None) -> Iterator[str]:
        yield f"## {inline(head(number, turn, Style()))}"
        told = [*marks(turn), *turn.notes]
        if told:
            yield "\n".join(f"- **{inline(mark)}**" for mark in told)
        if before != turn.instructions and (turn.system or turn.tools):
            yield from self._instructions(turn)
        for message in (*turn.added, *turn.replies):
            yield from self._message(turn.dialect, message)
        if turn.partial:
            yield "**\\[cut off here\\]**"
        if turn.error is not None:
            yield "**Error**"
            yield fence(turn.error if isinstance(turn.error, str) else json_text(turn.error, indent=2))

    def _instructions(self, turn: Turn) -> Iterator[str]:
        yield f"<details><summary>System prompt ({things(len(turn.system), 'part')}), {things(len(turn.tools), 'tool')}</summary>"
        for block in turn.system:
            yield fence(self._view(turn.dialect, block).text, "text")
        for tool in turn.tools:
            yield fence(json_text(tool, indent=2), "json")
        yield "</details>"

    def _message(self, dialect: Dialect | None, message: Message) -> Iterator[str]:
        yield f"### {inline(message.role, 40) or '?'}"
        for block in message.blocks:
            yield from self._block(dialect, block)

    def _block(self, dialect: Dialect | None, block: Block) -> Iterator[str]:
        seen = self._view(dialect, block)
        if seen.kind is Kind.THINKING:
            yield "<details><summary>Thinking</summary>"
            yield fence(seen.text, "text")
            yield "</details>"
        elif seen.kind in (Kind.TEXT, Kind.REFUSAL):
            yield prose(seen.text)
        elif seen.kind in (Kind.TOOL_CALL, Kind.TOOL_RESULT):
            what = "Call" if seen.kind is Kind.TOOL_CALL else "Result"
            yield " ".join(part for part in (f"**{what}**", inline(seen.name, 80), inline(seen.id, 80)) if part)
            if seen.text:
                yield fence(seen.text)
            yield from (f"*{inline(str(medium))}*" for medium in media(block.value))
        elif found := list(media(block.value)):
            yield from (f"*{seen.kind}: {inline(str(medium))}*" for medium in found)
        else:
            yield fence(seen.text or json_text(block.value, indent=2))

    def _view(self, dialect: Dialect | None, block: Block) -> View:
        return look(self.view, dialect, block)

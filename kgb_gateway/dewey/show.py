"""A conversation as a person reads it on a terminal, line by line.

Pure: it makes lines and prints none. Owns what is folded, what is named in a turn's head, and what is marked. Nothing that was recorded reaches
the terminal but through ``texts.visible``; colours come from here alone, and only when told.
"""

import difflib
from collections.abc import Iterator, Sequence
from datetime import UTC, tzinfo
from typing import Literal

import attrs

from . import texts
from .document import Conversation, Instructions, Turn, Viewer, look, sums
from .linking import Relation
from .media import media
from .transcripts.model import Block, Dialect, Kind, Message, Prompt, View

Paint = Literal["title", "head", "user", "assistant", "system", "tool", "dim", "warn", "added", "removed"]

_CODES: dict[Paint, str] = {
    "title": "1",
    "head": "36",
    "user": "1;32",
    "assistant": "1;34",
    "system": "1;35",
    "tool": "33",
    "dim": "2",
    "warn": "1;31",
    "added": "32",
    "removed": "31",
}
"""SGR parameters (ECMA-48) of the sixteen colours that every terminal has, so that its theme decides."""

_ROLES: dict[str, Paint] = {"user": "user", "system": "system", "developer": "system", "tool": "tool"}


@attrs.frozen
class Style:
    """How it looks. ``width``: columns of the terminal. ``unicode``: whether it shows more than ASCII (of our own signs; recorded
    text is shown as it is). ``zone``: of the times shown.
    """

    colour: bool = False
    width: int = 100
    unicode: bool = True
    zone: tzinfo = UTC

    def paint(self, paint: Paint, text: str) -> str:
        return f"\x1b[{_CODES[paint]}m{text}\x1b[0m" if self.colour and text else text

    @property
    def rule(self) -> str:
        return "──" if self.unicode else "--"

    @property
    def dot(self) -> str:
        return " · " if self.unicode else " - "

    @property
    def dots(self) -> str:
        return "…" if self.unicode else "..."


@attrs.frozen
class Fold:
    """How much is shown. ``thinking``: all of it, not a line. ``whole``: nothing is folded. ``system``: system prompt and tools too, and
    what the agent tells in the system's name in full. ``lines``: of a tool's call or result, and of such a message.
    """

    thinking: bool = False
    whole: bool = False
    system: bool = False
    lines: int = 12


def show(
    conversation: Conversation, view: Viewer, style: Style | None = None, fold: Fold | None = None
) -> Iterator[str]:
    """The lines of a conversation, without line ends."""
    page = _Page(view, style or Style(), fold or Fold())
    yield from page.title(conversation)
    before: Instructions | None = None
    for number, turn in enumerate(conversation.turns, 1):
        yield ""
        yield from page.turn(number, turn, before)
        before = turn.instructions


def head(number: int, turn: Turn, style: Style) -> str:
    """What a turn's head says: when, which model, tokens, cost, time, and all that is out of the ordinary. Without control characters."""
    when = texts.moment(turn.at, style.zone)
    parts = [str(number), when.strftime("%Y-%m-%d %H:%M:%S") if when else "?", texts.one_line(turn.model, 60) or "?"]
    used = sums(turn)
    about = "~" if turn.estimated else ""
    if used is not None:
        cached = f" (cached {texts.count(used.cached)})" if used.cached else ""
        parts.append(f"in {texts.count(used.input)}{cached} out {about}{texts.count(used.output)}")
    if turn.cost_micro_usd is not None:
        parts.append(about + texts.money(turn.cost_micro_usd))
    if turn.duration is not None:
        parts.append(texts.seconds(turn.duration))
    return "  ".join(parts)


def marks(turn: Turn) -> list[str]:
    """What is out of the ordinary about a turn, a few words each."""
    found = []
    if turn.status != 200 and (turn.status or turn.outcome != "completed"):
        found.append(f"status {turn.status}" if turn.status else "no response")
    if turn.relation and turn.relation not in (Relation.APPENDED, Relation.FIRST):
        found.append(f"{turn.relation} of {turn.after[:8]}" if turn.after else turn.relation)
    if turn.partial:
        found.append("partial")
    if turn.outcome not in ("", "completed"):
        found.append(turn.outcome)
    found += [name for name, said in (("estimated", turn.estimated), ("transformed", turn.transformed)) if said]
    if turn.source:
        found.append(f"imported from {turn.source}")
    return [texts.one_line(mark, 80) for mark in found]


@attrs.frozen
class _Page:
    view: Viewer
    style: Style
    fold: Fold

    def title(self, of: Conversation) -> Iterator[str]:
        title = texts.one_line(of.title, self.style.width) or f"Conversation {texts.one_line(of.id, 40)}"
        yield self.style.paint("title", title)
        about = [
            of.kind,
            of.agent,
            of.project,
            f"session {of.session}" if of.session else "",
            of.id if of.title else "",
        ]
        yield self.style.paint("dim", texts.one_line(self.style.dot.join(filter(None, about)), self.style.width))

    def turn(self, number: int, turn: Turn, before: Instructions | None) -> Iterator[str]:
        width = self.style.width
        line = f"{self.style.rule} {head(number, turn, self.style)} "
        rest = max(width - texts.cells(line), 0) // texts.cells(self.style.rule[0])
        yield self.style.paint("head", texts.cut(line + self.style.rule[0] * rest, width, self.style.dots))
        if found := marks(turn):
            yield from self._painted("warn", "[" + "] [".join(found) + "]")
        for note in turn.notes:
            yield from self._painted("warn", f"! {note}")
        yield from self._instructions(turn, before)
        for message in turn.added:
            yield from self._message(turn.dialect, message)
        for message in turn.replies:
            yield from self._message(turn.dialect, message, partial=turn.partial)
        if turn.error is not None:
            text = turn.error if isinstance(turn.error, str) else texts.json_text(turn.error)
            yield from self._painted("warn", f"error: {text}", self.fold.lines)
        if turn.stop_reason not in ("", "end_turn", "stop", "tool_use", "tool_calls", "completed", "STOP"):
            yield from self._painted("dim", f"stopped: {turn.stop_reason}")

    def _instructions(self, turn: Turn, before: Instructions | None) -> Iterator[str]:
        """System prompt and tools, where they are new."""
        if before == turn.instructions or not (turn.system or turn.tools):
            return
        blocks = [self._view(turn.dialect, block) for block in turn.system]
        letters = sum(len(block.text) for block in blocks)
        said = [f"system prompt, {texts.count(letters)} characters"] if blocks else []
        said += [texts.things(len(turn.tools), "tool")] if turn.tools else []
        yield self.style.paint("system", f"system: {', '.join(said)}")
        if self.fold.system:
            for block in blocks:
                yield from self._body(block.text)
            for tool in turn.tools:
                yield from self._body(texts.json_text(tool), 0 if self.fold.whole else 3)

    def _message(self, dialect: Dialect | None, message: Message, partial: bool = False) -> Iterator[str]:
        paint = _ROLES.get(message.role, "assistant")
        answer = message.role in ("tool", "function")
        told = message.role in ("system", "developer") and not (self.fold.system or self.fold.whole)
        most = self.fold.lines if told else 0
        label = texts.one_line(message.role, 40) or "?"
        if message.blocks and not self._only_results(dialect, message):
            yield self.style.paint(paint, f"{label}:")
        for block in message.blocks:
            yield from self._block(dialect, block, answer, most)
        if partial:
            yield self.style.paint("warn", "[cut off here]")

    def _only_results(self, dialect: Dialect | None, message: Message) -> bool:
        return all(self._view(dialect, block).kind is Kind.TOOL_RESULT for block in message.blocks)

    def _block(self, dialect: Dialect | None, block: Block, answer: bool, text_lines: int) -> Iterator[str]:
        seen = self._view(dialect, block)
        most = 0 if self.fold.whole else self.fold.lines
        if seen.kind is Kind.THINKING and not (self.fold.thinking or self.fold.whole):
            text = texts.one_line(seen.text, self.style.width - 14) or f"(not readable){self.style.dots}"
            yield self.style.paint("dim", f"  thinking: {text}")
        elif seen.kind is Kind.THINKING:
            yield self.style.paint("dim", "  thinking:")
            yield from self._body(seen.text, paint="dim")
        elif seen.kind is Kind.TOOL_CALL:
            yield self._label("call", seen)
            yield from self._body(seen.text, most)
        elif seen.kind is Kind.TOOL_RESULT or answer:
            failed = " (error)" if block.value.get("is_error") is True else ""
            yield self._label("result" + failed, seen)
            yield from self._body(seen.text, most)
            yield from self._media(block, "result")
        elif seen.kind in (Kind.IMAGE, Kind.AUDIO, Kind.DOCUMENT):
            yield from self._media(block, str(seen.kind), seen)
        elif seen.kind in (Kind.TEXT, Kind.REFUSAL):
            if seen.kind is Kind.REFUSAL:
                yield self.style.paint("warn", "  refusal:")
            yield from self._body(seen.text, text_lines)
        else:
            yield self.style.paint("dim", f"  {texts.one_line(seen.name or str(seen.kind), 60)}:")
            yield from self._body(seen.text or texts.json_text(block.value), most)

    def _label(self, what: str, seen: View) -> str:
        names = [texts.one_line(name, 60) for name in (seen.name, seen.id) if name]
        return self.style.paint("tool", texts.cut(f"  {what} {' '.join(names)}".rstrip(), self.style.width))

    def _media(self, block: Block, kind: str, seen: View | None = None) -> Iterator[str]:
        found = [str(medium) for medium in media(block.value)]
        if not found and seen is not None:
            found = [texts.one_line(seen.name or seen.text, 120)]
        for medium in found:
            kind = "image" if medium.startswith("image/") else kind
            yield self.style.paint("tool", texts.cut(f"  [{kind}: {medium}]", self.style.width))

    def _body(self, text: str, most: int = 0, paint: Paint | None = None) -> Iterator[str]:
        """``text``, indented; of more than ``most`` lines (0: no limit) the first, and how many there are besides."""
        width = self.style.width - 4
        rest = 0
        lines: Iterator[str] | list[str] = texts.wrap(text, width) if text else iter(())
        if most and text:
            lines, rest = texts.fold(text, width, most)
        for line in lines:
            yield self.style.paint(paint, f"    {line}") if paint else f"    {line}"
        if rest:
            yield self.style.paint("dim", f"    {self.style.dots} {rest} more {'lines' if rest > 1 else 'line'}")

    def _painted(self, paint: Paint, text: str, most: int = 0) -> Iterator[str]:
        lines = texts.fold(text, self.style.width, most)[0] if most else texts.wrap(text, self.style.width)
        for line in lines:
            yield self.style.paint(paint, line)

    def _view(self, dialect: Dialect | None, block: Block) -> View:
        return look(self.view, dialect, block)


# Two turns compared.


def diff(one: Prompt, other: Prompt, view: Viewer, names: tuple[str, str], style: Style | None = None) -> Iterator[str]:
    """What the request ``other`` asks otherwise than ``one``, as a unified diff: system, tools, parameters, messages. ``names``: of the two."""
    style = style or Style()
    before, after = request_lines(one, view), request_lines(other, view)
    first, second = (texts.one_line(name, 80) for name in names)
    for line in difflib.unified_diff(before, after, first, second, lineterm=""):
        if line.startswith(("---", "+++")):
            yield style.paint("title", line)
        elif line.startswith(("+", "-")):
            yield style.paint("added" if line[0] == "+" else "removed", line)
        else:
            yield style.paint("head", line) if line.startswith("@@") else line


def request_lines(prompt: Prompt, view: Viewer) -> Sequence[str]:
    """A whole request as visible lines that can be compared: what is text as text, everything else as JSON, members in their order."""
    lines = [f"model: {texts.one_line(prompt.model)}"]
    lines += _titled("parameters", texts.json_text(prompt.params, indent=2)) if prompt.params else []
    for block in prompt.system:
        lines += _titled("system", _whole(prompt.dialect, block, view))
    for tool in prompt.tools:
        lines += _titled("tool", texts.json_text(tool, indent=2))
    for message in prompt.messages:
        lines.append(f"{texts.one_line(message.role)}:")
        if message.extra:
            lines += _titled("  with", texts.json_text(message.extra, indent=2))
        for block in message.blocks:
            lines += _titled(f"  {block.kind}", _whole(prompt.dialect, block, view))
    return lines


def _titled(title: str, text: str) -> list[str]:
    return [f"{title}:", *(f"    {texts.visible(line.removesuffix(chr(13)))}" for line in text.split("\n"))]


def _whole(dialect: Dialect, block: Block, view: Viewer) -> str:
    """A block so that nothing of it is lost: its text, and its JSON where it is more than a text."""
    if block.kind is Kind.TEXT and set(block.value) <= {"type", "text"}:
        return view(dialect, block).text
    return texts.json_text(block.value, indent=2)

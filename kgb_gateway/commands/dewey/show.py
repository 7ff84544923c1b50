"""``kgb dewey show``: one conversation, as a person reads it."""

import argparse
import contextlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import datetime

import attrs

from kgb_gateway.commands.dewey.common import add_command, opened
from kgb_gateway.commands.dewey.listing import signs
from kgb_gateway.dewey.document import Conversation, Turn
from kgb_gateway.dewey.export import raw as raw_format
from kgb_gateway.dewey.raw import bodies, raw_of
from kgb_gateway.dewey.show import Fold, Style, diff, show
from kgb_gateway.dewey.store.database import StoreError
from kgb_gateway.dewey.store.reader import StoreReader
from kgb_gateway.dewey.transcripts.model import Dialect, Prompt
from kgb_gateway.dewey.transcripts.view import view
from kgb_gateway.dewey.turn_json import dump

PAGER = "less -FRX"


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``show``."""
    parser = add_command(commands, "show", "a conversation, as a person reads it", _show)
    add = parser.add_argument
    add("id", metavar="ID", help="of a session, conversation or exchange, shortened as you like; or: last")
    add("--turn", type=int, metavar="N", help="only this turn, from 1; -1 is the last")
    add("--all", action="store_true", help="fold nothing: whole tool results, thinking, system prompt and tools")
    add("--thinking", action="store_true", help="thinking in full")
    add("--system", action="store_true", help="system prompt and tools too, and system messages in full")
    add("--raw", action="store_true", help="the bytes as they passed, one JSON line an exchange")
    add("--diff", metavar="N[:M]", help="what turn M (default: the next) asked otherwise than turn N")
    add("--no-pager", action="store_true", help="print, whatever the length")
    add("--colour", "--color", choices=("auto", "always", "never"), default="auto")


def _show(args: argparse.Namespace) -> int:
    with opened(args) as store:
        found = store.find(args.id)
        if found is None:
            print(f"kgb dewey show: nothing on record has the id {args.id!r}", file=sys.stderr)
            return 1
        conversations = list(_conversations(store, *found))
        if args.diff:
            lines = _diff(args, [turn for each in conversations for turn in each.turns])
        elif args.raw:
            _raw(args, store, conversations)
            return 0
        elif args.json:
            _json(args, conversations)
            return 0
        else:
            lines = _read(args, conversations)
        _page(lines, args)
    return 0


def _conversations(store: StoreReader, kind: str, row: int) -> Iterator[Conversation]:
    """What the id names: an exchange alone, a conversation, or all those of a session."""
    if kind == "session":
        yield from store.conversations(row)
        loose = list(store.loose_of(row))
        if loose:
            yield Conversation("besides", kind="utility", turns=loose)
    elif kind == "conversation":
        conversation = store.conversation_of(row)
        if conversation is not None:
            yield conversation
    else:
        turn = store.request(row)
        yield Conversation(turn.conversation or turn.exchange, turn.session, project=turn.project, turns=[turn])


def _chosen(args: argparse.Namespace, turns: Iterable[Turn]) -> Iterable[Turn]:
    if args.turn is None:
        return turns
    known = list(turns)
    place = args.turn - 1 if args.turn > 0 else args.turn
    try:
        return [known[place]]
    except IndexError:
        raise ValueError(f"there is no turn {args.turn}: it has {len(known)}") from None


def style_of(args: argparse.Namespace) -> Style:
    """How the terminal is written to."""
    colour = args.colour == "always" or (
        args.colour == "auto"
        and sys.stdout.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") != "dumb"
    )
    return terminal(colour)


def terminal(colour: bool) -> Style:
    """The terminal's width, signs and time zone."""
    zone = datetime.fromtimestamp(time.time()).astimezone().tzinfo
    assert zone is not None
    return Style(colour, shutil.get_terminal_size((100, 40)).columns, signs(), zone)


def _read(args: argparse.Namespace, conversations: list[Conversation]) -> Iterator[str]:
    fold = Fold(thinking=args.thinking or args.all, whole=args.all, system=args.system or args.all)
    style = style_of(args)
    for number, conversation in enumerate(conversations):
        if number:
            yield ""
        chosen = attrs.evolve(conversation, turns=_chosen(args, conversation.turns))
        yield from show(chosen, view, style, fold)


def _json(args: argparse.Namespace, conversations: list[Conversation]) -> None:
    for conversation in conversations:
        for turn in _chosen(args, conversation.turns):
            print(json.dumps(dump(turn, conversation)))


def _raw(args: argparse.Namespace, store: StoreReader, conversations: list[Conversation]) -> None:
    kept = 0
    for conversation in conversations:
        for turn in _chosen(args, conversation.turns):
            whole = with_bodies(store, turn)
            kept += whole.request_body is not None
            print(json.dumps(raw_format.line(whole)))
    if not kept:
        raise StoreError("the raw bytes are not kept any more; --json has what was read out of them")


def with_bodies(store: StoreReader, turn: Turn) -> Turn:
    """``turn`` with its bodies as they passed, where they are kept."""
    segment, place = turn.facts.get("segment"), turn.facts.get("place", 0)
    if not turn.raw_kept or not isinstance(segment, str) or not isinstance(place, int):
        return turn
    key = bytes.fromhex(turn.exchange.replace("-", ""))
    gathered = raw_of(store.layout, str(turn.facts.get("instance", "")), segment, place, key)
    if gathered is None or gathered.asked.get("record") != "full":
        return turn
    found = bodies(gathered)
    return attrs.evolve(turn, request_body=found.request, response_body=found.response)


def _diff(args: argparse.Namespace, turns: list[Turn]) -> Iterator[str]:
    first, colon, second = args.diff.partition(":")
    try:
        one = int(first)
        other = int(second) if colon else one + 1
        before, after = turns[one - 1], turns[other - 1]
    except (ValueError, IndexError):
        raise ValueError(f"--diff {args.diff}: write N or N:M, turns from 1 to {len(turns)}") from None
    known: dict[str, tuple[Turn, Prompt]] = {}
    for turn in turns:
        known[turn.exchange] = (turn, prompt_of(turn, known))
    names = (f"turn {one} ({before.exchange[:8]})", f"turn {other} ({after.exchange[:8]})")
    yield from diff(known[before.exchange][1], known[after.exchange][1], view, names, style_of(args))


def prompt_of(turn: Turn, known: dict[str, tuple[Turn, Prompt]]) -> Prompt:
    """The whole request of ``turn``: what it has in common with an earlier one is taken from there."""
    messages = turn.added
    if turn.after in known:
        earlier, prompt = known[turn.after]
        messages = (*prompt.messages[: turn.shared], *(earlier.replies if turn.replied else ()), *turn.added)
    dialect = turn.dialect or Dialect.ANTHROPIC_MESSAGES
    return Prompt(dialect, turn.model, False, turn.system, turn.tools, messages, "", turn.params)


def _page(lines: Iterator[str], args: argparse.Namespace) -> None:
    """Print, through a pager where a person sits at a terminal."""
    if args.no_pager or not sys.stdout.isatty():
        for line in lines:
            print(line)
        return
    command = shlex.split(os.environ.get("PAGER") or PAGER)
    try:
        pager = subprocess.Popen(command, stdin=subprocess.PIPE, env={"LESSCHARSET": "utf-8", **os.environ})
    except OSError:
        for line in lines:
            print(line)
        return
    assert pager.stdin is not None
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        out = io.TextIOWrapper(pager.stdin, encoding="utf-8", errors="replace")
        for line in lines:
            out.write(line + "\n")
        out.close()
    pager.wait()

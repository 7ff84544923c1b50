"""``kgb dewey export`` and ``import``: conversations out into files, and in from others."""

import argparse
import contextlib
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import attrs

from kgb_gateway.commands.dewey.common import (
    add_command,
    add_filters,
    carry_out,
    filter_of,
    home_of,
    opened,
    retention_of,
)
from kgb_gateway.commands.dewey.show import with_bodies
from kgb_gateway.commands.dewey.upkeep import progress_on
from kgb_gateway.dewey.document import Conversation, Turn
from kgb_gateway.dewey.export import writers
from kgb_gateway.dewey.importing import Imported, write_turns
from kgb_gateway.dewey.imports import ClaudeReader, Fault, read_har, read_jsonl
from kgb_gateway.dewey.notes import SpoolWriter
from kgb_gateway.dewey.spool import Layout
from kgb_gateway.dewey.store.database import StoreError
from kgb_gateway.dewey.store.reader import StoreReader
from kgb_gateway.dewey.store.sqlite import has
from kgb_gateway.dewey.transcripts.view import view
from kgb_gateway.redact import Redactor
from kgb_gateway.secret import private, secret_of

FORMATS = ("jsonl", "markdown", "html", "har", "claude", "raw")
WITH_BODIES = ("har", "raw")
SHOWN = 20
SETTLED_SECONDS = 600.0
"""A transcript that nobody has written to for so long gets no more of its last reply."""

PIECE = 256 * 1024
"""Bytes of an archive that are read at a stretch."""


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the two."""
    parser = add_command(commands, "export", "conversations into a file", _export, json=False)
    parser.add_argument(
        "id", nargs="?", default="", metavar="ID", help="a session, conversation or exchange; default: all"
    )
    add_filters(parser)
    parser.add_argument("--format", choices=FORMATS, default="jsonl", help="default: jsonl")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    parser = add_command(commands, "import", "conversations that others have kept", _import)
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="Claude Code's folder (~/.claude/projects) or a transcript in it, a HAR file, or JSONL of kgb dewey export",
    )


def _export(args: argparse.Namespace) -> int:
    write = writers(view)[args.format]
    progress = progress_on(sys.stderr.isatty() and args.output is not None, "turns")
    with opened(args) as store:
        conversations = _wanted(args, store)
        if args.format in WITH_BODIES:
            conversations = (
                attrs.evolve(each, turns=(with_bodies(store, turn) for turn in each.turns)) for each in conversations
            )
        with _output(args.output) as out:
            write(conversations, out, progress)
    return 0


def _wanted(args: argparse.Namespace, store: StoreReader) -> Iterator[Conversation]:
    if args.id:
        found = store.find(args.id)
        if found is None:
            raise ValueError(f"nothing on record has the id {args.id!r}")
        kind, row = found
        if kind == "session":
            yield from store.conversations(row)
            yield Conversation("besides", kind="utility", turns=store.loose_of(row))
        elif kind == "conversation":
            one = store.conversation_of(row)
            if one is not None:
                yield one
        else:
            turn = store.request(row)
            yield Conversation(turn.conversation or turn.exchange, turn.session, turns=[turn])
        return
    wanted = filter_of(args, store)
    yield from store.conversations(wanted=wanted)
    # What is no turn of a conversation passed the gateway all the same.
    yield Conversation("besides", kind="utility", turns=store.loose(wanted))


@contextlib.contextmanager
def _output(path: Path | None) -> Iterator[BinaryIO]:
    """Standard output, or a file for its owner alone that is there whole or not at all."""
    if path is None:
        yield sys.stdout.buffer
        return
    temporary = path.with_name(path.name + ".part")
    try:
        with open(temporary, "wb", opener=private) as out:
            yield out
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _import(args: argparse.Namespace) -> int:
    home = home_of(args)
    for path in args.paths:
        if not path.exists():
            raise ValueError(f"{path} is not there")
    faults: list[str] = []
    total = Imported()
    redactor = Redactor(secret_of(home))
    progress = progress_on(sys.stderr.isatty(), "turns read")
    layout = Layout(home)
    with _known(args) as known, SpoolWriter(layout.spool, version("kgb-gateway")) as writer:
        for path, turns in _sources(args.paths, faults):
            try:
                done = write_turns(writer, turns, redactor, known, progress)
            except OSError as error:
                faults.append(f"{path}: {error.strerror}")
                continue
            total.written += done.written
            total.known += done.known
    if total.written:
        carry_out(home, writer.name, retention_of(args))
    if args.json:
        print(json.dumps({"imported": total.written, "known": total.known, "not_read": faults}, indent=2))
    else:
        print(f"{total.written} turns imported, {total.known} were there already, {len(faults)} lines not read")
        for fault in faults[:SHOWN]:
            print(f"  {fault}")
    return 0


class _Known:
    """Which exchanges are on record, or were written a moment ago."""

    def __init__(self, store: StoreReader | None) -> None:
        self._store = store
        self._seen: set[bytes] = set()

    def __call__(self, key: bytes) -> bool:
        if key in self._seen or (self._store is not None and has(self._store.connection, key)):
            return True
        self._seen.add(key)
        return False


@contextlib.contextmanager
def _known(args: argparse.Namespace) -> Iterator[_Known]:
    with contextlib.ExitStack() as stack:
        try:
            store = stack.enter_context(opened(args))
        except StoreError:
            store = None  # nothing has been recorded yet
        yield _Known(store)


def _sources(paths: Iterable[Path], faults: list[str]) -> Iterator[tuple[Path, Iterator[Turn]]]:
    """Every file below ``paths`` with the turns in it, as its kind is read."""
    for path in paths:
        files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
        for file in files:
            yield file, _turns(file, faults)


def _turns(file: Path, faults: list[str]) -> Iterator[Turn]:
    def on_fault(fault: Fault) -> None:
        faults.append(f"{file}: {fault}")

    with file.open("rb") as lines:
        start = lines.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
        lines.seek(0)
        if file.suffix == ".har" or re.match(rb'\{\s*"log"', start):
            yield from read_har(iter(partial(lines.read, PIECE), b""), on_fault)
        elif b'"kgb-dewey-1"' in start:
            yield from read_jsonl(lines, on_fault)
        else:
            growing = time.time() - file.stat().st_mtime < SETTLED_SECONDS
            for turn in ClaudeReader(on_fault, file.stem).read(lines):
                # What is imported once stays as it is: half a reply waits for its other half.
                if turn.partial and growing:
                    faults.append(f"{file}: the last reply may not be whole yet, and is left for a later import")
                else:
                    yield turn

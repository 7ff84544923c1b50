"""A large store, and how fast the commands of ``kgb dewey`` find something in it.

What is timed is the whole command but for the start of its process: arguments, the librarian's work (nobody else is at it), the
store opened, the question, the printing.
"""

import contextlib
import io
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from kgb_gateway.__main__ import main as kgb
from kgb_gateway.dewey.entry import Entry
from kgb_gateway.dewey.identity import Identity
from kgb_gateway.dewey.librarian import lock
from kgb_gateway.dewey.placing import Placer
from kgb_gateway.dewey.spool import Layout
from kgb_gateway.dewey.store.database import open_reader
from kgb_gateway.dewey.store.sqlite import SqliteWriter
from kgb_gateway.dewey.transcripts.model import Block, Dialect, Kind, Message, Prompt, Reply
from kgb_gateway.dewey.transcripts.view import view
from tests.bench.dewey.figures import NONE_AT_ALL, Bound, Figure, Sizes
from tests.bench.dewey.texts import VOCABULARY, Words, word

LENGTH = 170
"""Words of a message: about 1 KB."""

CONVERSATION = 20
"""Messages of a conversation."""

BATCH = 50
"""Exchanges that are written at once."""

SHOWN = "the-long-one"
"""The session whose conversation is shown."""

NO_HIT = "no message holds that"

_BEGAN = 1_700_000_000.0


def queries(seed: int) -> dict[str, Callable[[], str]]:
    """Makers of queries by their kind; each gives another one each time."""
    chance = random.Random(seed)

    def ranked(low: int, high: int) -> str:
        return word(chance.randrange(low, high))

    return {
        "rare": lambda: ranked(VOCABULARY // 4, VOCABULARY),
        "common": lambda: ranked(0, 50),
        "phrase": lambda: f'"{ranked(0, 30)} {ranked(0, 300)}"',
        "prefix": lambda: f"{ranked(500, VOCABULARY // 2)[: chance.choice((2, 3, 4))]}*",
    }


def fill(home: Path, messages: int, shown: int, say: Callable[[str], None]) -> None:
    """A store of ``messages`` messages of distinct text, one conversation of which has ``shown`` turns."""
    writer = SqliteWriter(Layout(home).store, view)
    placer, began, done = Placer(writer), time.monotonic(), 0
    entries = _entries(messages, shown)
    while batch := list(islice(entries, BATCH)):
        with writer.transaction():
            for entry in batch:
                writer.add(placer.place(entry))
        done += len(batch)
        if done % 5000 == 0:
            say(f"{done} exchanges after {time.monotonic() - began:.0f} s")
    writer.close()


def _entries(messages: int, shown: int) -> Iterator[Entry]:
    words, chance = Words(7), random.Random(7)

    def said(number: int) -> Message:
        role = "assistant" if number % 2 else "user"
        return Message(role, (Block(Kind.TEXT, {"type": "text", "text": words.text(LENGTH)}),))

    def entry(at: int, session: str, talk: Sequence[Message]) -> Entry:
        anthropic = Dialect.ANTHROPIC_MESSAGES
        system = (Block(Kind.TEXT, {"type": "text", "text": "You are an agent."}),)
        prompt = Prompt(
            anthropic, "claude", True, system, ({"name": "Bash"},), tuple(talk[:-1]), "", {"max_tokens": 100}
        )
        uuid = chance.getrandbits(128).to_bytes(16)
        reply = Reply(anthropic, f"msg_{uuid.hex()}", "claude", (talk[-1],), "end_turn", {"input_tokens": 3}, True)
        return Entry(
            uuid,
            name=f"req_{uuid.hex()}",
            at=_BEGAN + 60 * at,
            method="POST",
            target="/v1/messages",
            status=200,
            outcome="completed",
            dialect=anthropic,
            surface="turn",
            prompt=prompt,
            reply=reply,
            identity=Identity("claude-code", session),
        )

    count = (messages - 2 * shown) // CONVERSATION
    for number in range(count):
        yield entry(number, f"session-{number // 10}", [said(each) for each in range(CONVERSATION)])
    talk: list[Message] = []
    for turn in range(shown):
        talk += [said(0), said(1)]
        yield entry(count + turn, SHOWN, talk)


def held(home: Path) -> int:
    """Messages in the store of ``home`` that people said."""
    with contextlib.closing(open_reader(Layout(home).store)) as db:
        return int(db.execute("SELECT count(*) FROM words_docsize").fetchone()[0])


def run(home: Path, *words: str) -> tuple[float, list[str]]:
    """One ``kgb dewey`` command: seconds, and the lines that it printed."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as errors:
        began = time.perf_counter()
        status = kgb(["dewey", words[0], "--data-dir", str(home), *words[1:]])
        seconds = time.perf_counter() - began
    if status and NO_HIT not in errors.getvalue():
        raise RuntimeError(f"kgb dewey {' '.join(words)} ended with {status}: {errors.getvalue().strip()}")
    out.seek(0)
    return seconds, out.read().splitlines()


def share(times: Sequence[float], part: float) -> float:
    """Milliseconds within which this part of ``times`` is."""
    return sorted(times)[max(0, math.ceil(len(times) * part) - 1)] * 1e3


def million(directory: Path, sizes: Sizes, say: Callable[[str], None]) -> list[Figure]:
    """Searches, lists and shows in a large store; filled first, unless it is there."""
    if not Layout(directory).store.exists():
        say(f"a store of {sizes.messages} messages is filled")
        fill(directory, sizes.messages, sizes.shown, say)
    size = Layout(directory).store.stat().st_size
    missing = abs(sizes.messages - held(directory))
    figures = [
        Figure("million_missing", "messages that are not found by words", "messages", missing, NONE_AT_ALL,
               f"of {sizes.messages:,}; {size / 1e6:,.0f} MB on disk"),
    ]  # fmt: skip
    return figures + _searches(directory, sizes, say) + _reads(directory, sizes)


def _searches(home: Path, sizes: Sizes, say: Callable[[str], None]) -> list[Figure]:
    _asked(home, 1, sizes.queries)  # warms the caches of the system, with other words
    times, figures = list[float](), list[Figure]()
    for kind, found in _asked(home, 2, sizes.queries).items():
        spent = [seconds for seconds, _ in found]
        times += spent
        hits = sum(len(lines) // 2 for _, lines in found) / len(found)
        note = f"p99 {share(spent, 0.99):.0f}; {hits:.1f} hits shown"
        figures.append(Figure(f"search_{kind}", f"search, {kind}: p50", "ms", share(spent, 0.5), note=note))
        say(f"{kind}: {note}")
    with lock(home):
        beside = [seconds for found in _asked(home, 3, sizes.queries).values() for seconds, _ in found]
    return [
        Figure("search_p50", "search of all four kinds: p50", "ms", share(times, 0.5), Bound(50)),
        Figure("search_p99", "search of all four kinds: p99", "ms", share(times, 0.99), Bound(300)),
        *figures,
        Figure(
            "search_beside",
            "search beside a librarian at work: p50",
            "ms",
            share(beside, 0.5),
            note=f"p99 {share(beside, 0.99):.0f}; the command does none of its work",
        ),
    ]


def _asked(home: Path, seed: int, count: int) -> dict[str, list[tuple[float, list[str]]]]:
    """``count`` searches of each kind."""
    return {kind: [run(home, "search", query()) for _ in range(count)] for kind, query in queries(seed).items()}


def _reads(home: Path, sizes: Sizes) -> list[Figure]:
    listed = [run(home, "list") for _ in range(sizes.queries)]
    shown = [run(home, "show", SHOWN, "--no-pager") for _ in range(max(1, sizes.queries // 4))]
    lines = len(shown[-1][1])
    return [
        Figure("list", "list: p99", "ms", share([each[0] for each in listed], 0.99), Bound(100),
               f"p50 {share([each[0] for each in listed], 0.5):.0f}; {len(listed[-1][1])} lines"),
        Figure("show", f"show, {sizes.shown} turns: p99", "ms", share([each[0] for each in shown], 0.99), Bound(300),
               f"p50 {share([each[0] for each in shown], 0.5):.0f}; {lines:,} lines"),
    ]  # fmt: skip

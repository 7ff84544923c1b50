"""Finding words again: the full-text index asked, ranked, and shown with the words around.

Owns the language of searches: words (all of them must be there), "phrases in quotes", beginnings of words (``pars*``), and
``-word`` for what must not be there. ``_``, ``.`` and other marks inside a word make it a phrase of its parts, so that identifiers
and paths are found as they are written.

Ranking: with up to RANKED hits, by BM25 (Robertson and Zaragoza, 2009), as SQLite computes it; above that the newest RANKED are
looked at, and those in which the words stand more densely come first: nobody reads the ten-thousandth hit of a common word.
"""

import re
import sqlite3
from collections.abc import Iterator, Sequence

import attrs

from kgb_gateway.dewey.canon import from_json
from kgb_gateway.dewey.packing import unpack
from kgb_gateway.dewey.store.sqlite import Viewer
from kgb_gateway.dewey.transcripts.model import Block, Dialect, Kind

RANKED = 1000
"""Hits that are ranked with each other."""

AROUND = 60
"""Characters of context on each side of a hit in a snippet."""

_TERM = re.compile(r'(-?)(?:"([^"]*)"?|(\S+))')
_WORD = re.compile(r"[^\W_]+")


@attrs.frozen
class Term:
    """One condition. ``words``: in this order, next to each other; ``prefix``: the last one may go on."""

    words: tuple[str, ...]
    prefix: bool = False
    negative: bool = False

    @property
    def fts(self) -> str:
        """In FTS5's language: everything quoted, so that nothing in it is an operator."""
        return '"' + " ".join(self.words) + '"' + (" *" if self.prefix else "")

    @property
    def pattern(self) -> str:
        """A regular expression for it in a text."""
        return r"[\W_]+".join(map(re.escape, self.words)) + (r"[^\W_]*" if self.prefix else r"(?![^\W_])")


@attrs.frozen
class Hit:
    """A block that holds the words. ``exchange``: the row of the first exchange it was in; ``snippet``: text around the words;
    ``marks``: where in the snippet they are."""

    block: int
    exchange: int
    role: str
    kind: str
    snippet: str
    marks: tuple[tuple[int, int], ...]


def parse(query: str) -> list[Term]:
    """The conditions in ``query``. ValueError when there is none that must be there."""
    terms = []
    for negative, phrase, word in _TERM.findall(query):
        text = phrase or word
        prefix = not phrase and text.endswith("*")
        words = tuple(_WORD.findall(text.casefold()))
        if words:
            terms.append(Term(words, prefix, bool(negative)))
    if not any(not term.negative for term in terms):
        raise ValueError(f"{query!r} has no word to look for: letters or digits are needed")
    return terms


def matches(terms: Sequence[Term]) -> str:
    """``terms`` in FTS5's language."""
    wanted = " AND ".join(term.fts for term in terms if not term.negative)
    return wanted + "".join(f" NOT {term.fts}" for term in terms if term.negative)


def search(
    db: sqlite3.Connection, query: str, view: Viewer, limit: int = 20, *, session: int | None = None
) -> list[Hit]:
    """The best ``limit`` hits for ``query``. ValueError when it asks for nothing. ``view``: what a block says."""
    terms = parse(query)
    asked = matches(terms)
    rows = db.execute(
        "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rowid DESC LIMIT ?", (asked, RANKED + 1)
    ).fetchall()
    found = [row[0] for row in rows]
    if session is not None:
        found = [row for row in found if _is_in(db, row, session)]
    if len(found) > RANKED:
        ranked: Iterator[int] | list[int] = _dense(db, found[:RANKED], terms, limit)
    elif session is None:
        best = db.execute(
            "SELECT rowid FROM words WHERE words MATCH ? ORDER BY bm25(words), rowid DESC LIMIT ?", (asked, limit)
        )
        ranked = [row[0] for row in best.fetchall()] if len(found) > 1 else found
    else:
        ranked = _dense(db, found, terms, limit)
    hits = []
    for row in ranked:
        hit = _hit(db, row, terms, view)
        if hit is not None:
            hits.append(hit)
        if len(hits) == limit:
            break
    return hits


def _dense(db: sqlite3.Connection, rows: Sequence[int], terms: Sequence[Term], limit: int) -> list[int]:
    """The ``limit`` of ``rows`` that are shortest for what they hold: sizes are known without unpacking anything."""
    marks = ", ".join("?" * len(rows))
    sizes = db.execute(f"SELECT id, size FROM block WHERE id IN ({marks})", list(rows)).fetchall()
    newest = {row: place for place, row in enumerate(rows)}
    # A block of twice the size needs to be much newer to come first.
    order = sorted(sizes, key=lambda row: newest[row[0]] + 100 * max(0, int(row[1]).bit_length() - 9))
    return [row[0] for row in order[:limit]]


def _is_in(db: sqlite3.Connection, block: int, session: int) -> bool:
    row = db.execute(
        "SELECT 1 FROM part JOIN node ON node.message = part.message "
        "JOIN exchange ON exchange.node = node.id OR exchange.reply = node.id "
        "WHERE part.block = ? AND exchange.session = ? LIMIT 1",
        (block, session),
    ).fetchone()
    return row is not None


def _hit(db: sqlite3.Connection, block: int, terms: Sequence[Term], view: Viewer) -> Hit | None:
    """``block`` as a hit: with the first exchange that held it."""
    row = db.execute(
        "SELECT message.id, message.role, block.kind, block.codec, block.data FROM part "
        "JOIN message ON message.id = part.message JOIN block ON block.id = part.block WHERE part.block = ? LIMIT 1",
        (block,),
    ).fetchone()
    if row is None:
        return None
    message, role, kind, codec, data = row
    node = db.execute("SELECT id FROM node WHERE message = ? ORDER BY id LIMIT 1", (message,)).fetchone()
    exchange = first_exchange(db, node[0]) if node is not None else None
    if exchange is None:
        return None
    value = from_json(unpack(codec, data))
    dialect = db.execute("SELECT dialect FROM exchange WHERE id = ?", (exchange,)).fetchone()[0]
    seen = view(Dialect(dialect), Block(Kind(kind), value if isinstance(value, dict) else {}))
    snippet, marks = snippet_of(f"{seen.name} {seen.text}" if seen.name else seen.text, terms)
    return Hit(block, exchange, role, kind, snippet, marks)


def first_exchange(db: sqlite3.Connection, node: int) -> int | None:
    """The first exchange in which ``node`` was: the one whose request or reply ends at or behind it."""
    for _ in range(10_000):
        row = db.execute(
            "SELECT id FROM exchange WHERE node = :node OR reply = :node ORDER BY at, id LIMIT 1", {"node": node}
        ).fetchone()
        if row is not None:
            return int(row[0])
        child = db.execute("SELECT id FROM node WHERE parent = ? ORDER BY id LIMIT 1", (node,)).fetchone()
        if child is None:
            return None
        node = child[0]
    return None


def snippet_of(text: str, terms: Sequence[Term]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The part of ``text`` around the first of ``terms``, on one line, and where they are in it."""
    pattern = re.compile(
        "|".join(rf"(?<![^\W_])(?:{term.pattern})" for term in terms if not term.negative), re.IGNORECASE
    )
    match = pattern.search(text)
    at = match.start() if match is not None else 0
    start, end = max(0, at - AROUND), (match.end() if match is not None else 0) + AROUND
    piece = " ".join(text[start:end].split())
    piece = ("… " if start else "") + piece + (" …" if end < len(text) else "")
    return piece, tuple((m.start(), m.end()) for m in pattern.finditer(piece))

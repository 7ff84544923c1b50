"""Text to record: real one, which is the standard library's source, and distinct one of words as rare as Zipf says.

Deterministic for one version of Python: the same calls give the same text.
"""

import functools
import itertools
import random
import sysconfig
from pathlib import Path

LEAST = 2000
"""Characters below which a source is left out."""

VOCABULARY = 200_000
LETTERS = "etaoinshrdlucmfwypvbgkqjxz"


@functools.cache
def sources() -> tuple[str, ...]:
    """The standard library's modules, in an order that has nothing to do with their names."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path for path in root.rglob("*.py") if "site-packages" not in path.parts)
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    found = [text for text in texts if len(text) >= LEAST]
    random.Random(5).shuffle(found)
    return tuple(found)


class Prose:
    """Real text, each piece once. When all of it has been given, it goes on with the same lines in another order."""

    def __init__(self, seed: int = 0) -> None:
        self._chance = random.Random(seed)
        self._number = self._chance.randrange(len(sources()))
        self._given = 0
        self._text = sources()[self._number]
        self._place = 0

    def take(self, length: int) -> str:
        """The next ``length`` characters."""
        found = []
        while length > 0:
            piece = self._text[self._place : self._place + length]
            found.append(piece)
            length -= len(piece)
            self._place += len(piece)
            if self._place >= len(self._text):
                self._next()
        return "".join(found)

    def _next(self) -> None:
        self._given += 1
        self._number, self._place = (self._number + 1) % len(sources()), 0
        self._text = sources()[self._number]
        if self._given >= len(sources()):
            lines = self._text.splitlines(keepends=True)
            self._chance.shuffle(lines)
            self._text = "".join(lines)


def word(number: int) -> str:
    """The word of this rank, 0 being the commonest."""
    letters, left = [], number + 1
    while left:
        letters.append(LETTERS[left % 26])
        left //= 26
    return "".join(letters) + "ox"[number % 2]


class Words:
    """Distinct text: words drawn by Zipf's law (the n-th commonest is n times as rare as the first)."""

    def __init__(self, seed: int, vocabulary: int = VOCABULARY) -> None:
        self._chance = random.Random(seed)
        self._words = [word(number) for number in range(vocabulary)]
        self._weights = list(itertools.accumulate(1 / (number + 1) for number in range(vocabulary)))

    def text(self, words: int) -> str:
        """So many of them."""
        return " ".join(self._chance.choices(self._words, cum_weights=self._weights, k=words))

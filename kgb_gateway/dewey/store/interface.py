"""What a store must be able to do, whatever database is behind it.

Owns no database. One conformance suite (``tests/store``) holds every implementation to this. Writing happens in transactions: an
exchange and the position of the journal behind it are there together, or neither is, so that reading again adds nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from kgb_gateway.dewey.entry import Placed, Position, Problem
from kgb_gateway.dewey.linking import Known
from kgb_gateway.dewey.transcripts.model import Message


class StoreWriter(Protocol):
    """The side of the librarian."""

    def transaction(self) -> AbstractContextManager[None]:
        """All that is written inside is there together, or not at all."""

    def attempt(self) -> AbstractContextManager[None]:
        """Inside a transaction: what fails in here is taken back alone."""

    def positions(self) -> dict[str, Position]:
        """How far each instance's frames are in the store."""

    def set_position(self, position: Position) -> None:
        """Say so; inside the transaction that holds the exchanges."""

    def has(self, uuid: bytes) -> bool:
        """Whether this exchange is in the store, or was erased for good."""

    def known(self, session: str, chain: Sequence[bytes], caller: str) -> tuple[str, list[Known]]:
        """The session and the earlier turns, oldest first, that an exchange may belong to: those of ``session``; where that
        is "", those whose messages begin like ``chain`` and that came from the same caller. ("", []) for none."""

    def said(self, uuid: bytes) -> tuple[tuple[Message, ...], tuple[Message, ...]] | None:
        """The messages of an exchange and of its reply; None where it is not there."""

    def replied(self, reply_id: str, caller: str) -> bytes | None:
        """The exchange of ``caller`` in which the provider gave this id to its reply; the latest of several."""

    def add(self, placed: Placed) -> None:
        """Take an exchange in. One that is there already, or was erased, is left as it is."""

    def add_problem(self, problem: Problem) -> None:
        """Note what could not be read."""

    def close(self) -> None:
        """Let go of the database, everything in its main file."""


class Ids(Protocol):
    """The part of a store that erases; apart, since it is used rarely and alone."""

    def pin(self, session: str, *, pinned: bool) -> None:
        """Keep a session from every prune, or no longer."""

    def forget(self, uuids: Iterable[bytes], at: float) -> int:
        """Take exchanges out for good, and everything that no other exchange uses; how many there were."""

    def scrub(self) -> None:
        """After ``forget``: leave nothing of it in free pages, the full-text index or the write-ahead log."""

    def expired(self, segments: Iterable[str]) -> Iterator[bytes]:
        """The exchanges whose first frame is in one of ``segments``."""

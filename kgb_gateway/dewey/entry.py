"""Entries: what is on record of one exchange, once it has been read; and the forms in which the store gives it back.

Pure. Owns the words between the librarian, the stores and those who show what is in them.
"""

from collections.abc import Mapping

import attrs

from kgb_gateway.dewey.canon import CanonicalMessage, Mark
from kgb_gateway.dewey.identity import Identity
from kgb_gateway.dewey.linking import Asked, Link
from kgb_gateway.dewey.transcripts.model import Dialect, Json, Prompt, Reply
from kgb_gateway.dewey.usage import Usage

INTERRUPTED = "interrupted"
"""The outcome of an exchange whose gateway died before it could say one."""

Header = tuple[str, str]


@attrs.frozen
class Priced:
    """Usage of one iteration with its cost in millionths of a US dollar, None where no price is known."""

    usage: Usage
    cost: int | None = None


@attrs.frozen
class Base:
    """What an imported turn goes on from: the first ``shared`` messages of the exchange ``uuid`` (-1: all of them), then its replies
    if ``replied``."""

    uuid: bytes
    shared: int
    replied: bool


@attrs.frozen
class Entry:
    """One exchange as the journal tells it, read.

    ``uuid``: 16 bytes. ``name``: the id that the caller saw. ``segment`` and ``place``: where its first frame is. ``at``:
    seconds since the epoch; ``duration`` and ``first_byte`` seconds from there. Headers hold no credential.
    ``request_sha256`` and ``response_sha256``: of the bodies as received, b"" where not all of them is recorded.
    ``unreadable``: why there is neither prompt nor reply although the exchange speaks a dialect. ``partial``: the reply ended
    early. ``base``: the prompt's messages stand behind those of an earlier exchange. ``notes``: what people should know of it (gaps, damage).
    """

    uuid: bytes
    name: str = ""
    instance: str = ""
    segment: str = ""
    place: int = 0
    at: float = 0.0
    duration: float | None = None
    first_byte: float | None = None
    method: str = ""
    target: str = ""
    remote: str = ""
    caller: str = ""
    route: str = ""
    slot: str = ""
    upstream: str = ""
    status: int = 0
    outcome: str = ""
    error_code: str = ""
    attempts: int = 0
    transformed: bool = False
    request_size: int = 0
    response_size: int = 0
    request_sha256: bytes = b""
    response_sha256: bytes = b""
    request_headers: tuple[Header, ...] = ()
    response_headers: tuple[Header, ...] = ()
    facts: Mapping[str, Json] = attrs.field(factory=dict)
    notes: tuple[str, ...] = ()
    dialect: Dialect | None = None
    surface: str = ""
    unreadable: str = ""
    prompt: Prompt | None = None
    base: Base | None = None
    reply: Reply | None = None
    partial: bool = False
    identity: Identity = attrs.field(factory=Identity)
    project: str = ""
    usage: tuple[Priced, ...] = ()
    cost: int | None = None
    prices: str = ""
    estimated: bool = False

    @property
    def model(self) -> str:
        """The model that answered, else the one that was asked."""
        served = self.reply.model if self.reply is not None else ""
        return served or (self.prompt.model if self.prompt is not None else "")


@attrs.frozen
class Placed:
    """An entry with its place among the others.

    ``messages`` with ``chain`` (a hash for each, over all up to it), ``replies`` with ``reply_chain`` behind it; ``system`` and
    ``tools`` as one message each; ``params`` as the canonical JSON value. ``session``: its key. ``conversation``: the key of
    the conversation, new or known.
    """

    entry: Entry
    asked: Asked
    link: Link
    session: str = ""
    conversation: str = ""
    kind: str = "main"
    system: CanonicalMessage | None = None
    tools: CanonicalMessage | None = None
    messages: tuple[CanonicalMessage, ...] = ()
    replies: tuple[CanonicalMessage, ...] = ()
    reply_chain: tuple[bytes, ...] = ()
    marks: tuple[Mark, ...] = ()


@attrs.frozen
class Position:
    """How far an instance's frames are in the store: ``sequence`` is the last one; reading goes on at ``place`` (bytes) of
    ``segment``, which may lie before it, where an exchange that was still open had begun."""

    instance: str
    segment: str = ""
    place: int = 0
    sequence: int = 0


@attrs.frozen
class Problem:
    """Something that could not be read, set aside. ``exchange``: 16 bytes, b"" where it belongs to none."""

    at: float
    instance: str
    segment: str
    place: int
    why: str
    exchange: bytes = b""

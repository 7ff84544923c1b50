"""From the bytes of a body to a prompt or a reply: coding, framing, dialect, in this order.

Pure. Whatever a body holds, the answer is a prompt, a reply or NotReadable with the reason; nothing else is raised for what somebody
sent. Owns what happens when headers and bytes disagree.
"""

from collections.abc import Mapping

import attrs

from .assembling import assembled
from .coding import Decoder, decoded
from .detect import Headers, Surface, header
from .dialects import READERS
from .earlier import Earlier
from .eventstream import PRELUDE
from .framing import Framing, Told, framing_of
from .gather import table, text, without
from .lax_json import close, loads, text_of_bytes
from .model import Dialect, Json, NotReadable, Prompt, Reply, View

_UNSEEN = 20_000
"""Events that wait for ``live``; whoever never asks shall not keep a stream in memory twice."""

_READ = ("turn", "compact", "count_tokens", "websocket")
"""Kinds whose requests are prompts."""
_ANSWERED = ("turn", "compact", "retrieve", "websocket")
"""Kinds whose replies are messages."""


def read_request(
    surface: Surface, headers: Headers, body: bytes, earlier: Earlier | None = None
) -> tuple[Prompt, Mapping[str, Json]]:
    """What was asked, and the request's JSON object. ``earlier``: what was read before. NotReadable: the body is none."""
    value = loads(decoded(_coding_of(header(headers, "content-encoding"), body[:16]), body))
    if not isinstance(value, dict):
        raise NotReadable("the request is no JSON object")
    if surface.kind not in _READ:
        return Prompt(
            surface.dialect, text(value.get("model")) or surface.model, params=without(value, ("model",))
        ), value
    asked: Mapping[str, Json] = value
    if surface.dialect is Dialect.GEMINI and isinstance(value.get("generateContentRequest"), dict):
        asked = table(value["generateContentRequest"])
    try:
        read = READERS[surface.dialect].prompt
        prompt = read(asked) if earlier is None else earlier.prompt(surface.dialect, read, asked, len(body))
    except RecursionError:
        raise NotReadable("the JSON is nested too deeply") from None
    model = prompt.model or surface.model
    return attrs.evolve(prompt, model=model, stream=prompt.stream or surface.stream), value


class ReplyReader:
    """Reads one reply as its bytes come. ``headers``: those of the response."""

    def __init__(self, surface: Surface, headers: Headers) -> None:
        headers = list(headers)
        self._surface = surface
        self._dialect = READERS[surface.dialect]
        self._coding = header(headers, "content-encoding")
        self._type = header(headers, "content-type")
        self._decoder: Decoder | None = None
        self._raw = b""
        self._begin = b""
        self._chosen = False
        self._framing: Framing | None = None
        self._text: list[bytes] = []
        self._assembler = self._dialect.assembler()
        self._unseen: list[Json] | None = []

    def feed(self, data: bytes) -> None:
        """Bytes of the body as they came. NotReadable: an unknown coding, or more bytes than a body may have."""
        if self._decoder is None:
            self._raw += data
            if len(self._raw) < 4:
                return
            data = self._opened()
        assert self._decoder is not None
        self._decoded(self._decoder.feed(data))

    def live(self) -> list[View]:
        """What has arrived since the last call: texts, thoughts, tool calls with their input as it grows."""
        found: list[View] = []
        for event in self._unseen or ():
            for view in self._assembler.fresh(event):
                last = found[-1] if found else None
                if last is not None and last.kind is view.kind and not view.name:
                    found[-1] = attrs.evolve(last, text=last.text + view.text)
                else:
                    found.append(view)
        self._unseen = []
        return found

    def finish(self, whole: bool) -> Reply:
        """The reply. ``whole``: no bytes are missing, for all the transport knows. NotReadable: it is none of its dialect."""
        if self._decoder is None:
            data = self._opened()
            assert self._decoder is not None
            self._decoded(self._decoder.feed(data))
        whole = whole and self._decoder.whole
        if not self._chosen:
            self._choose()
        try:
            reply = self._reply(whole)
        except RecursionError:
            raise NotReadable("the JSON is nested too deeply") from None
        return attrs.evolve(reply, model=reply.model or (self._surface.model if reply.messages else ""))

    def _opened(self) -> bytes:
        """Choose the coding. The bytes that were held back for it are given."""
        data, self._raw = self._raw, b""
        self._decoder = Decoder(_coding_of(self._coding, data))
        return data

    def _decoded(self, data: bytes) -> None:
        if not self._chosen:
            self._begin += data
            if len(self._begin.lstrip()) < PRELUDE:
                return
            data = self._choose()
        self._framed(data)

    def _choose(self) -> bytes:
        """Choose the framing. The bytes that were held back for it are given."""
        self._framing = framing_of(self._type, self._begin)
        self._chosen = True
        data, self._begin = self._begin, b""
        return data

    def _framed(self, data: bytes) -> None:
        if self._framing is None:
            self._text.append(data)
            return
        for told in self._framing.feed(data):
            self._take(told)

    def _take(self, told: Told) -> None:
        if told.broken is not None:
            self._assembler.unknown.append(told.broken)
        if told.error and self._assembler.error is None:
            self._assembler.error = told.value if told.readable else told.broken
        elif told.readable:
            self._assembler.feed(told.value, told.name)
            if self._unseen is not None:
                self._unseen.append(told.value)
                if len(self._unseen) > _UNSEEN:
                    self._unseen = None

    def _reply(self, whole: bool) -> Reply:
        if self._framing is None:
            return self._document(whole)
        for told in self._framing.finish(whole):
            self._take(told)
        if self._framing.fault:
            self._assembler.unknown.append({"fault": self._framing.fault})
        elif whole:
            self._assembler.end()
        return assembled(self._assembler, self._dialect.reply)

    def _document(self, whole: bool) -> Reply:
        """One JSON text: a reply, an error, Gemini's array of chunks, or a file with one chunk on each line."""
        data, self._text = b"".join(self._text), []
        value, cut = _loaded(data, whole, self._decoder.fault if self._decoder is not None else "")
        if self._surface.kind not in _ANSWERED and not (isinstance(value, dict) and value.get("error")):
            return _other(self._surface, value, whole)
        if isinstance(value, list):
            for event in value:
                self._assembler.feed(event)
            if not self._assembler.bodies() and self._assembler.error is None:
                raise NotReadable("the reply is a JSON array in which nothing is known")
            self._assembler.end()
            return assembled(self._assembler, self._dialect.reply)
        reply = self._dialect.reply(value)
        return attrs.evolve(reply, complete=reply.complete and not cut)


def _loaded(data: bytes, whole: bool, fault: str) -> tuple[Json, bool]:
    """The JSON in ``data``, and whether it was cut: what came of a text that ends too early is read all the same."""
    try:
        return loads(data), False
    except NotReadable as error:
        lines = [line for line in data.splitlines() if line.strip()]
        if len(lines) > 1 and all(line.lstrip().startswith(b"{") for line in lines):
            try:
                return [loads(line) for line in lines], False
            except NotReadable:
                pass
        ended = "" if whole else close(text_of_bytes(data))
        if not ended:
            raise NotReadable(fault or str(error)) from None
    return loads(ended), True


def _other(surface: Surface, value: Json, whole: bool) -> Reply:
    """A reply that is no model's answer: a count, a list of models, a batch."""
    if not isinstance(value, dict):
        value = {"values": value}
    usage = value.get("usage")
    return Reply(
        surface.dialect,
        text(value.get("id")),
        text(value.get("model")),
        usage=usage if isinstance(usage, dict) else None,
        complete=whole,
        rest=without(value, ("id", "model", "usage")),
    )


_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
_PLAIN = (b"{", b"[", b"data", b"even")


def _coding_of(codings: str, begin: bytes) -> str:
    """What a body is coded as: its header, unless the first bytes show that it lies."""
    if not codings.strip() or codings.strip().lower() == "identity":
        return next((name for name, magic in _MAGIC.items() if begin.startswith(magic)), "")
    known = _MAGIC.get(codings.strip().lower())
    if known is not None and begin[:1] != known[:1] and begin.lstrip().startswith(_PLAIN):
        return ""
    return codings

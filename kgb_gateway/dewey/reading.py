"""Reading: from a gathered exchange to an entry of the store.

Owns what is made of an exchange's facts and bodies; how a dialect is read is the transcripts' matter. Nothing here can fail for
what somebody sent: what cannot be read is kept raw, and the entry says why.
"""

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping

import attrs

from fiedler_proxy.exchange import PREFLIGHT, SHADOW_OF
from kgb_gateway.dewey.canon import digest
from kgb_gateway.dewey.entry import INTERRUPTED, Entry, Priced
from kgb_gateway.dewey.exchanges import Gathered, Pieces
from kgb_gateway.dewey.identity import ID_CAP, Identity, identify
from kgb_gateway.dewey.importing import RECORD, entry_of
from kgb_gateway.dewey.prices import Pricing
from kgb_gateway.dewey.transcripts.detect import Surface, detect
from kgb_gateway.dewey.transcripts.dialects import READERS
from kgb_gateway.dewey.transcripts.earlier import Earlier
from kgb_gateway.dewey.transcripts.model import Dialect, Json, Message, NotReadable, Prompt
from kgb_gateway.dewey.transcripts.reader import ReplyReader, read_request
from kgb_gateway.dewey.transcripts.responses_socket import turns
from kgb_gateway.dewey.transcripts.view import view
from kgb_gateway.dewey.usage import Usage, normalise
from kgb_gateway.record import Kind

CHARACTERS_A_TOKEN = 4
"""How tokens are guessed where a stream was cut before its provider counted them."""

_PROJECT = re.compile(r"[Ww]orking directory: *([^\n<]{1,400})|<cwd>([^<\n]{1,400})</cwd>")
_PROJECT_CHARACTERS = 200_000

_log = logging.getLogger("kgb.dewey")


class Reading:
    """Reads exchanges with one table of prices."""

    def __init__(self, prices: Pricing) -> None:
        self._prices = prices
        self._earlier = Earlier()

    def entries(self, gathered: Gathered) -> list[Entry]:
        """The exchange as an entry; a WebSocket as one, and one more for each turn that went over it."""
        entry = _facts(gathered)
        if gathered.asked.get("record") == RECORD:
            return [self._imported(entry, gathered)]
        surface = detect(entry.method, entry.target, entry.request_headers, entry.response_headers)
        if surface is None:
            return [entry]
        entry = attrs.evolve(entry, dialect=surface.dialect, surface=str(surface.kind))
        if surface.kind == "websocket":
            return [self._identified(entry, {}), *self._socket(entry, gathered)]
        if gathered.asked.get("record") != "full" or not gathered.body(Kind.REQUEST_BYTES).size:
            return [self._identified(entry, {})]
        if gathered.has_gap(Kind.REQUEST_BYTES):
            return [self._identified(attrs.evolve(entry, unreadable="bytes of the request are missing"), {})]
        try:
            return [self._read(entry, surface, gathered)]
        except NotReadable as error:
            return [self._identified(attrs.evolve(entry, unreadable=str(error)[:500]), {})]
        except Exception as error:  # whatever a body did to a parser: the exchange is kept, raw
            _log.exception("exchange %s cannot be read", entry.name)
            why = f"a fault of this program: {type(error).__name__}"
            return [self._identified(attrs.evolve(entry, unreadable=why), {})]

    def _socket(self, entry: Entry, gathered: Gathered) -> list[Entry]:
        """The turns that went over one connection, each as an entry of its own."""
        found = []
        sent, received = gathered.body(Kind.TO_UPSTREAM), gathered.body(Kind.TO_CALLER)
        for number, (body, reply) in enumerate(turns(entry.response_headers, sent, received), 1):
            try:
                prompt = READERS[Dialect.OPENAI_RESPONSES].prompt(body)
            except (NotReadable, RecursionError):
                continue  # it is in the raw bytes of the connection
            turn = attrs.evolve(
                entry,
                uuid=digest(entry.uuid, number.to_bytes(4, "big"))[:16],
                name=f"{entry.name}.{number}",
                surface="turn",
                status=200 if reply.error is None else 400,
                prompt=prompt,
                reply=reply,
                partial=not reply.complete,
                project=project_of(prompt),
                request_size=0,
                response_size=0,
            )
            found.append(self._priced(self._identified(turn, body)))
        return found

    def _imported(self, entry: Entry, gathered: Gathered) -> Entry:
        try:
            entry = entry_of(entry, gathered.body(Kind.REQUEST_BYTES).read())
        except (ValueError, TypeError, RecursionError) as error:
            return attrs.evolve(entry, unreadable=f"no imported turn: {error}"[:500])
        return entry if entry.usage else self._priced(entry)

    def _read(self, entry: Entry, surface: Surface, gathered: Gathered) -> Entry:
        asked = gathered.body(Kind.REQUEST_BYTES).read()
        prompt, body = read_request(surface, entry.request_headers, asked, self._earlier)
        entry = self._identified(attrs.evolve(entry, prompt=prompt), body)
        entry = attrs.evolve(entry, project=project_of(prompt))
        response = gathered.body(Kind.RESPONSE_BYTES)
        if gathered.answered is None or not response.size:
            return attrs.evolve(entry, partial=entry.outcome != "completed")
        reader = ReplyReader(surface, entry.response_headers)
        try:
            for piece in response:
                reader.feed(piece)
            ended = entry.outcome == "completed" and not gathered.has_gap(Kind.RESPONSE_BYTES)
            reply = reader.finish(whole=ended)
        except NotReadable as error:
            return attrs.evolve(entry, unreadable=f"the reply: {error}"[:500], partial=entry.outcome != "completed")
        if entry.outcome == "caller_left" and reply.complete:
            # The last event had come: some clients close behind it, before the last chunk.
            entry = attrs.evolve(entry, outcome="completed")
        partial = entry.status < 400 and not reply.complete
        return self._priced(attrs.evolve(entry, reply=reply, partial=partial))

    def _identified(self, entry: Entry, body: Mapping[str, Json]) -> Entry:
        headers: dict[bytes, bytes] = {}
        for name, value in entry.request_headers:
            headers.setdefault(name.lower().encode("latin-1"), value.encode("latin-1", "replace"))
        return attrs.evolve(entry, identity=_apart(entry, identify(headers, body)))

    def _priced(self, entry: Entry) -> Entry:
        reply, dialect = entry.reply, entry.dialect
        if reply is None or dialect is None or entry.surface != "turn":
            return entry
        usages: Iterable[Usage] = normalise(dialect, reply.usage, entry.model)
        estimated = entry.partial
        if estimated:
            usages = _estimate(entry, tuple(usages))
        priced, version = [], ""
        for usage in usages:
            cost = self._prices.cost(entry.upstream, usage, entry.at)
            priced.append(Priced(usage, cost.micro_usd if cost is not None else None))
            version = cost.version if cost is not None else version
        costs = [each.cost for each in priced]
        total = None if not costs or None in costs else sum(cost for cost in costs if cost is not None)
        return attrs.evolve(entry, usage=tuple(priced), cost=total, prices=version, estimated=estimated)


def _apart(entry: Entry, identity: Identity) -> Identity:
    """The gateway's own exchanges are no turns of the session whose words they repeat."""
    for fact in (SHADOW_OF, PREFLIGHT):
        told = entry.facts.get(fact)
        if told:
            kind = fact.partition("_")[0]
            return attrs.evolve(identity, session=f"{kind}:{identity.session or told}"[:ID_CAP])
    return identity


def _facts(gathered: Gathered) -> Entry:
    """What the frames say, before any body is read."""
    asked, end = gathered.asked, gathered.end or {}
    request, response = gathered.body(Kind.REQUEST_BYTES), gathered.body(Kind.RESPONSE_BYTES)
    full = asked.get("record") == "full"
    at = _number(asked.get("at")) or gathered.began / 1e9
    duration = _number(end.get("duration"))
    status = (gathered.answered or {}).get("status", end.get("status"))
    facts = end.get("facts")
    return Entry(
        uuid=gathered.key,
        name=_text(asked.get("id")) or gathered.key.hex(),
        instance=gathered.instance,
        segment=gathered.segment,
        place=gathered.place,
        at=at,
        duration=max(0.0, gathered.last / 1e9 - at) if gathered.end is None else duration,
        first_byte=_number(end.get("first_byte")),
        method=_text(asked.get("method")),
        target=_text(asked.get("target")),
        remote=_text(asked.get("remote")),
        caller=_text(end.get("caller")) or _text(asked.get("caller")),
        route=_text(end.get("route")) or _text(asked.get("route")),
        slot=_text(end.get("slot")) or _text(asked.get("slot")),
        upstream=_text(end.get("upstream")) or _text(asked.get("upstream")),
        status=status if isinstance(status, int) else 0,
        outcome=_text(end.get("outcome")) or INTERRUPTED,
        error_code=_text(end.get("error")),
        attempts=_count(end.get("attempts")),
        transformed=end.get("transformed") is True,
        request_size=_count(end.get("request_size")) if end else request.size,
        response_size=_count(end.get("response_size")) if end else response.size,
        request_sha256=_sha256(request) if full and not gathered.has_gap(Kind.REQUEST_BYTES) else b"",
        response_sha256=_sha256(response) if full and not gathered.has_gap(Kind.RESPONSE_BYTES) else b"",
        request_headers=gathered.request_headers,
        response_headers=gathered.response_headers,
        facts=facts if isinstance(facts, dict) else {},
        notes=tuple(_notes(gathered)),
    )


def _notes(gathered: Gathered) -> Iterable[str]:
    names = {1: "head", 2: "request", 3: "head", 4: "response", 5: "tunnel to upstream", 6: "tunnel to caller"}
    for gap in gathered.gaps:
        where = names.get(gap.kind, "something")
        yield f"gap: {gap.length} bytes of the {where} from byte {gap.offset} on are not on record"
    if gathered.damaged:
        yield "frames of the journal are missing: some of this exchange may be"


def _estimate(entry: Entry, usages: tuple[Usage, ...]) -> tuple[Usage, ...]:
    """What was used as far as can be told: the provider's count of the input where it came, and of the output at least as
    many tokens as the text that arrived is long."""
    assert entry.reply is not None
    assert entry.dialect is not None
    seen = _characters(entry, entry.reply.messages) // CHARACTERS_A_TOKEN
    if not usages:
        asked = entry.request_size // CHARACTERS_A_TOKEN
        return (Usage(model=entry.model, uncached=asked, output=seen),)
    last = usages[-1]
    return (*usages[:-1], attrs.evolve(last, output=max(last.output, seen)))


def _characters(entry: Entry, messages: Iterable[Message]) -> int:
    assert entry.dialect is not None
    return sum(len(view(entry.dialect, block).text) for message in messages for block in message.blocks)


def project_of(prompt: Prompt) -> str:
    """The directory in which the agent works, where it tells the model; "" otherwise."""
    blocks = list(prompt.system)
    for message in prompt.messages[:2]:
        blocks += message.blocks
    for block in blocks:
        text = block.value.get("text")
        if isinstance(text, str) and (match := _PROJECT.search(text[:_PROJECT_CHARACTERS])):
            return (match[1] or match[2]).strip()
    return ""


def _sha256(pieces: Pieces) -> bytes:
    state = hashlib.sha256()
    for piece in pieces:
        state.update(piece)
    return state.digest()


def _text(value: Json) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Json) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _count(value: Json) -> int:
    return value if isinstance(value, int) and value >= 0 else 0

"""The Responses API over one WebSocket: turn after turn, told apart.

Pure. The client asks with ``response.create``, the server answers with the events of a stream, one turn at a time. Owns which
event belongs to which turn; frames are ``websocket``'s matter, events ``responses_stream``'s.
"""

from collections.abc import Iterable, Mapping

from . import openai_responses
from .assembling import assembled
from .detect import Headers
from .gather import table, text, without
from .lax_json import loads
from .model import Json, NotReadable, Reply
from .responses_stream import TERMINAL, Assembler
from .websocket import negotiated, texts

Turn = tuple[Mapping[str, Json], Reply]
"""The request's body, as it would have been posted, and the reply."""


def turns(response_headers: Headers, sent: Iterable[bytes], received: Iterable[bytes]) -> list[Turn]:
    """The turns in the raw bytes of an upgraded connection, ``sent`` by the client and ``received`` from the server."""
    deflate = negotiated(list(response_headers))
    return split(texts(sent, deflate, server=False), texts(received, deflate, server=True))


def split(sent: Iterable[str], received: Iterable[str]) -> list[Turn]:
    """The turns in the messages of both sides. A turn that was not answered, or not to its end, has an incomplete reply; a
    reply that nobody asked for has an empty body.
    """
    asked = [body for each in sent if (body := _asked(each)) is not None]
    answers = _answers(received)
    replies = [assembled(each, openai_responses.read_reply) for each in answers]
    replies += [Reply(openai_responses.DIALECT)] * (len(asked) - len(replies))
    asked += [{}] * (len(replies) - len(asked))
    return list(zip(asked, replies, strict=True))


def _asked(message: str) -> Mapping[str, Json] | None:
    """The body in a ``response.create``: beside its type, or, as older servers have it, in ``response``."""
    try:
        event = loads(message)
    except NotReadable:
        return None
    if not isinstance(event, dict) or event.get("type") != "response.create":
        return None
    inner = event.get("response")
    return inner if isinstance(inner, dict) else without(event, ("type", "event_id"))


def _answers(received: Iterable[str]) -> list[Assembler]:
    found: list[Assembler] = []
    for message in received:
        try:
            event = loads(message)
        except NotReadable:
            event = {"data": message}
        kind = text(table(event).get("type"))
        begins = not found or (found[-1].ended and kind not in TERMINAL)
        if found and kind == "response.created":
            begins = begins or bool(found[-1].bodies())
        if begins:
            found.append(Assembler())
        found[-1].feed(event)
    if len(found) > 1 and not found[-1].bodies() and found[-1].error is None:
        last = found.pop()  # what the server said behind the last turn
        found[-1].unknown += last.unknown
    return found

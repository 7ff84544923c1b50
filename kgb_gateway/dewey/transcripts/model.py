"""The words of transcripts: prompts, replies, messages and blocks, the same for every dialect.

Pure. A block is a dialect's own JSON, verbatim, with a name for what it is: nothing that a provider sends is translated or left
out, so what nobody has heard of yet is kept too. Owns no dialect.
"""

import enum
from collections.abc import Mapping, Sequence

import attrs

Json = object
"""What ``json.loads`` gives: dict, list, str, int, float, bool or None. Never changed once it is in here."""


class Dialect(enum.StrEnum):
    """Which API an exchange speaks. (``fiedler_proxy.errors.Dialect`` is the coarser one of error envelopes.)"""

    ANTHROPIC_MESSAGES = "anthropic_messages"
    OPENAI_CHAT = "openai_chat"
    OPENAI_COMPLETIONS = "openai_completions"
    OPENAI_RESPONSES = "openai_responses"
    GEMINI = "gemini"
    GEMINI_INTERACTIONS = "gemini_interactions"


class Kind(enum.StrEnum):
    """What a block is to a reader."""

    TEXT = "text"
    THINKING = "thinking"
    TOOL_CALL = "tool_call"
    """The model asks for a tool, the caller's or the provider's own."""
    TOOL_RESULT = "tool_result"
    IMAGE = "image"
    AUDIO = "audio"
    DOCUMENT = "document"
    REFUSAL = "refusal"
    OTHER = "other"
    """What this version does not know; its JSON is kept and shown."""


@attrs.frozen
class Block:
    """One part of a message. ``value`` is the dialect's own JSON object for it.

    What a dialect writes as a bare text (``"content": "hi"``) becomes its own object for a text (``{"type": "text", "text":
    "hi"}``, Gemini: ``{"text": "hi"}``), so that the same words are the same block however they were written.
    """

    kind: Kind
    value: Mapping[str, Json]


@attrs.frozen
class Message:
    """One message. ``role``: the dialect's word (``user``, ``assistant``, ``system``, ``developer``, ``tool``, ``model``).
    ``extra``: its other members, verbatim (``tool_call_id``, ``name``, ``id``, ``status``), {} for most.
    """

    role: str
    blocks: tuple[Block, ...]
    extra: Mapping[str, Json] = attrs.field(factory=dict)


@attrs.frozen
class Prompt:
    """What was asked. ``params``: every member of the body that is not told by the other fields, verbatim.

    ``previous``: the id of the reply that this request continues on the provider's side, "" for none (Responses,
    Interactions).
    """

    dialect: Dialect
    model: str = ""
    stream: bool = False
    system: tuple[Block, ...] = ()
    tools: tuple[Json, ...] = ()
    messages: tuple[Message, ...] = ()
    previous: str = ""
    params: Mapping[str, Json] = attrs.field(factory=dict)


@attrs.frozen
class Reply:
    """What was answered; the same for a stream and for the body that was not streamed.

    ``messages``: most often one; one per output item of the Responses API; one per choice or candidate where several were
    asked for. ``stop_reason``: the provider's word, "" where there is none. ``usage``: the provider's JSON object, verbatim, the
    last word of it. ``complete``: the reply came to the end that its dialect defines; an error in mid-stream, or bytes that
    end early, leave it False. ``error``: the provider's error object. ``rest``: all other members of the body, verbatim.
    ``unknown``: events of a stream that this version could not place, verbatim, in order.
    """

    dialect: Dialect
    id: str = ""
    model: str = ""
    messages: tuple[Message, ...] = ()
    stop_reason: str = ""
    usage: Mapping[str, Json] | None = None
    complete: bool = False
    error: Json = None
    rest: Mapping[str, Json] = attrs.field(factory=dict)
    unknown: tuple[Json, ...] = ()


@attrs.frozen
class View:
    """A block for people and for search. ``text``: what it says, all of it. ``name``: of a tool, a file, a media type.
    ``id``: by which a call and its result find each other.
    """

    kind: Kind
    text: str = ""
    name: str = ""
    id: str = ""


class NotReadable(ValueError):
    """A body that is no request or reply of its dialect. The message says what is wrong and where."""


def text_of(values: Sequence[str]) -> str:
    """Texts of one block, a line each; nothing for none."""
    return "\n".join(value for value in values if value)

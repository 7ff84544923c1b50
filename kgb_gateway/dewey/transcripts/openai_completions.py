"""OpenAI's legacy Completions: a prompt, a text.

Pure. A prompt is one message of the user's for each text in it; prompts of token numbers are kept as they are. Owns no framing.
"""

from .gather import items, tables, text, without
from .model import Block, Dialect, Json, Kind, Message, NotReadable, Prompt, Reply
from .openai_chat import Assembler as ChatAssembler

DIALECT = Dialect.OPENAI_COMPLETIONS

_TOLD_BY_PROMPT = ("model", "stream", "prompt")
_TOLD_BY_REPLY = ("id", "model", "choices", "usage", "error")


def read_prompt(body: Json) -> Prompt:
    """A request. NotReadable: it is no object."""
    if not isinstance(body, dict):
        raise NotReadable("the request is no JSON object")
    asked = body.get("prompt")
    texts = items(asked) if isinstance(asked, list) and all(isinstance(each, str) for each in asked) else (asked,)
    messages = tuple(Message("user", (_block(each),)) for each in texts if each is not None)
    known = text(body.get("model"))
    return Prompt(DIALECT, known, body.get("stream") is True, messages=messages, params=without(body, _TOLD_BY_PROMPT))


def _block(value: Json) -> Block:
    if isinstance(value, str):
        return Block(Kind.TEXT, {"type": "text", "text": value})
    return Block(Kind.OTHER, {"type": "tokens", "prompt": value})


def read_reply(body: Json) -> Reply:
    """A completion, or an error body. NotReadable: it is no object."""
    if not isinstance(body, dict):
        raise NotReadable("the reply is no JSON object")
    choices = tables(body.get("choices"))
    if body.get("error") and not choices:
        return Reply(DIALECT, error=body["error"], rest=without(body, ("error",)))
    usage = body.get("usage")
    reasons = [text(choice.get("finish_reason")) for choice in choices]
    beside = [without(choice, ("text",)) for choice in choices]
    rest = without(body, _TOLD_BY_REPLY)
    if len(choices) > 1 or any(each.get("logprobs") for each in beside):
        rest["choices"] = beside
    return Reply(
        DIALECT,
        text(body.get("id")),
        text(body.get("model")),
        tuple(Message("assistant", (_block(text(choice.get("text"))),)) for choice in choices),
        reasons[0] if reasons else "",
        usage if isinstance(usage, dict) else None,
        bool(choices) and all(reasons),
        body.get("error") or None,
        rest,
    )


class Assembler(ChatAssembler):
    """Takes the chunks of a stream, as for chat: a choice has a text in the place of a message."""

    def bodies(self) -> list[dict[str, Json]]:
        bodies = super().bodies()
        for body in bodies:
            body["choices"] = [without(choice, ("message",)) for choice in tables(body["choices"])]
        return bodies

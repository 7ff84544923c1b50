"""OpenAI Chat Completions, as OpenAI and many others speak it: requests, replies, and the stream of chunks.

Pure. What others add is understood where it is common: reasoning as ``reasoning_content`` (DeepSeek, xAI), ``reasoning``
(OpenRouter, vLLM) or as parts of the content (Mistral), usage under ``x_groq``. Owns no framing.
"""

from collections.abc import Mapping

from .gather import Growing, blocks, items, number, table, tables, text, without
from .model import Block, Dialect, Json, Kind, Message, NotReadable, Prompt, Reply, View
from .tool_calls import ToolCalls

DIALECT = Dialect.OPENAI_CHAT

REASONING = ("reasoning_content", "reasoning")
"""Members of a message that hold what the model thought."""

_KINDS = {
    "text": Kind.TEXT,
    "thinking": Kind.THINKING,
    "reasoning": Kind.THINKING,
    "image_url": Kind.IMAGE,
    "input_audio": Kind.AUDIO,
    "audio": Kind.AUDIO,
    "file": Kind.DOCUMENT,
    "document_url": Kind.DOCUMENT,
    "refusal": Kind.REFUSAL,
}

_TOLD_BY_PROMPT = ("model", "stream", "tools", "messages")
_TOLD_BY_REPLY = ("id", "model", "choices", "usage", "error")
_IN_BLOCKS = ("role", "content", *REASONING, "refusal", "audio", "tool_calls", "function_call")
_PADDING = ("obfuscation",)


def kind_of(part: Mapping[str, Json]) -> Kind:
    """What a part of a message's content is."""
    return _KINDS.get(text(part.get("type")), Kind.OTHER)


def _bare(words: str) -> Mapping[str, Json]:
    return {"type": "text", "text": words}


def read_prompt(body: Json) -> Prompt:
    """A request. NotReadable: it is no object, or has no list of messages."""
    if not isinstance(body, dict):
        raise NotReadable("the request is no JSON object")
    if not isinstance(body.get("messages"), list):
        raise NotReadable("the request has no list of messages")
    return Prompt(
        DIALECT,
        text(body.get("model")),
        body.get("stream") is True,
        (),
        tuple(items(body.get("tools"))),
        tuple(message(each) for each in tables(body.get("messages"))),
        "",
        without(body, _TOLD_BY_PROMPT),
    )


def message(value: Mapping[str, Json]) -> Message:
    """A message of a request or a reply. Members that are null say nothing and go."""
    role = text(value.get("role"))
    extra = {name: member for name, member in without(value, _IN_BLOCKS).items() if member is not None}
    if role in ("tool", "function"):
        names = ("tool_call_id", "content") if role == "tool" else ("name", "content")
        result = {name: value[name] for name in names if name in value}
        return Message(role, (Block(Kind.TOOL_RESULT, result),), extra)
    found: list[Block] = []
    for name in REASONING:
        if value.get(name) and not any(block.value.get("text") == value[name] for block in found):
            found.append(Block(Kind.THINKING, {"type": name, "text": value[name]}))
    if value.get("content") != "":
        found += blocks(value.get("content"), kind_of, _bare)
    if value.get("refusal"):
        found.append(Block(Kind.REFUSAL, {"type": "refusal", "refusal": value["refusal"]}))
    if isinstance(value.get("audio"), dict):
        found.append(Block(Kind.AUDIO, {"type": "audio", "audio": value["audio"]}))
    found += [Block(Kind.TOOL_CALL, each) for each in tables(value.get("tool_calls"))]
    if isinstance(value.get("function_call"), dict):
        found.append(Block(Kind.TOOL_CALL, {"type": "function_call", "function_call": value["function_call"]}))
    return Message(role, tuple(found), extra)


def read_reply(body: Json) -> Reply:
    """A completion, or an error body. NotReadable: it is no object."""
    if not isinstance(body, dict):
        raise NotReadable("the reply is no JSON object")
    choices = tables(body.get("choices"))
    if body.get("error") and not choices:
        return Reply(DIALECT, error=body["error"], rest=without(body, ("error",)))
    usage = body.get("usage") or table(body.get("x_groq")).get("usage")
    reasons = [text(choice.get("finish_reason")) for choice in choices]
    rest = without(body, _TOLD_BY_REPLY)
    beside = [without(choice, ("message",)) for choice in choices]
    if any(without(each, ("index", "finish_reason")) for each in beside) or len(choices) > 1:
        rest["choices"] = beside
    return Reply(
        DIALECT,
        text(body.get("id")),
        text(body.get("model")),
        tuple(message({"role": "assistant", **table(choice.get("message"))}) for choice in choices),
        reasons[0] if reasons else "",
        usage if isinstance(usage, dict) else None,
        bool(choices) and all(reasons),
        body.get("error") or None,
        rest,
    )


class _Part:
    """One part of a content list. A thinking part (Mistral) holds texts that grow."""

    def __init__(self, value: Mapping[str, Json]) -> None:
        self._top = Growing(without(value, ("thinking",)) if isinstance(value.get("thinking"), list) else value)
        self._thoughts = [Growing(each) for each in tables(value.get("thinking"))]

    def goes_on(self, value: Mapping[str, Json]) -> bool:
        """Add ``value`` if it continues this part; False if it is another one."""
        if value.get("type") not in ("text", "thinking") or self._top.get("type") != value["type"]:
            return False
        for name, member in without(value, ("type",)).items():
            if name == "thinking" and isinstance(member, list):
                for each in tables(member):
                    self._think(each)
            else:
                self._top.merge(name, member)
        return True

    def _think(self, more: Mapping[str, Json]) -> None:
        last = self._thoughts[-1] if self._thoughts else None
        if last is not None and set(more) == {"type", "text"} and more["type"] == last.get("type") == "text":
            last.add("text", text(more["text"]))
        else:
            self._thoughts.append(Growing(more))

    def plain(self) -> dict[str, Json]:
        value = self._top.plain()
        if self._thoughts:
            value["thinking"] = [each.plain() for each in self._thoughts]
        return value


class _Choice:
    """One choice that grows."""

    def __init__(self, index: int) -> None:
        self.top = Growing({"index": index})
        self.message = Growing({})
        self.parts: list[_Part] = []
        self.calls = ToolCalls()
        self.called = False
        self.function: Growing | None = None
        self.audio: Growing | None = None
        self.chances: Growing | None = None

    def add(self, choice: Mapping[str, Json]) -> None:
        for name, value in without(choice, ("index", "delta", "message", *_PADDING)).items():
            if name == "finish_reason":
                if value is not None or name not in self.top:
                    self.top.put(name, value)
            elif name == "text" and isinstance(value, str):
                self.top.add(name, value)  # legacy completions
            elif name == "logprobs" and isinstance(value, dict):
                self.chances = self.chances or Growing({})
                for key, member in value.items():
                    self.chances.merge(key, member)
            elif value is not None or name not in self.top:
                self.top.put(name, value)
        delta = choice.get("delta", choice.get("message"))
        for name, value in table(delta).items():
            self._grow(name, value)

    def _grow(self, name: str, value: Json) -> None:
        if name == "role":
            if value or name not in self.message:
                self.message.put(name, value)
        elif name == "tool_calls":
            for fragment in tables(value):
                self.called = True
                self.calls.add(fragment)
        elif name == "content" and isinstance(value, list):
            for part in value:
                self._part(part)
        elif name == "content" and self.parts and isinstance(value, str):
            if value:
                self._part({"type": "text", "text": value})
        elif name in ("function_call", "audio") and isinstance(value, dict):
            self._member(name, value)
        elif name not in ("index", *_PADDING):
            self.message.merge(name, value)

    def _member(self, name: str, value: Mapping[str, Json]) -> None:
        growing = self.function if name == "function_call" else self.audio
        if growing is None:
            growing = Growing({})
            if name == "audio":
                self.audio = growing
            else:
                self.function = growing
        for key, member in value.items():
            if key == "id":
                growing.put(key, member)
            else:
                growing.merge(key, member)

    def _part(self, part: Json) -> None:
        """A part of a content list (Mistral): one that goes on with the last one's kind goes on with it."""
        if not self.parts and (said := text(self.message.get("content"))):
            self.parts.append(_Part({"type": "text", "text": said}))
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        value = part if isinstance(part, dict) else {"value": part}
        if not self.parts or not self.parts[-1].goes_on(value):
            self.parts.append(_Part(value))

    def plain(self) -> dict[str, Json]:
        said = self.message.plain()
        if self.parts:
            said["content"] = [part.plain() for part in self.parts]
        if self.called:
            said["tool_calls"] = self.calls.plain()
        if self.function is not None:
            said["function_call"] = self.function.plain()
        if self.audio is not None:
            said["audio"] = self.audio.plain()
        whole = {**self.top.plain(), "message": said}
        if self.chances is not None:
            whole["logprobs"] = self.chances.plain()
        return whole


class Assembler:
    """Takes the chunks of a stream and ``"[DONE]"``. Usage may come with any chunk; the last that is there counts."""

    def __init__(self) -> None:
        self._top = Growing({})
        self._choices: dict[int, _Choice] = {}
        self._done = self._ended = False
        self.error: Json = None
        self.unknown: list[Json] = []

    @property
    def complete(self) -> bool:
        if self.error is not None or not self._choices:
            return False
        if self._done:
            return True
        counted = self._ended or bool(self._top.get("usage"))
        return counted and all(choice.top.get("finish_reason") for choice in self._choices.values())

    def end(self) -> None:
        """Some servers leave out ``[DONE]``."""
        self._ended = True

    def bodies(self) -> list[dict[str, Json]]:
        """The completion; none before anything has come."""
        body = self._top.plain()
        if not body and not self._choices:
            return []
        body["choices"] = [self._choices[index].plain() for index in sorted(self._choices)]
        return [body]

    def feed(self, event: Json, name: str = "") -> None:
        """One chunk."""
        if event == "[DONE]":
            self._done = True
            return
        if not isinstance(event, dict):
            self.unknown.append(event)
            return
        if event.get("error"):
            self.error = event["error"]
        elif name == "error":
            self.error = event
            return
        elif "choices" not in event and "id" not in event and "usage" not in event:
            self.unknown.append(event)
            return
        for key, value in without(event, ("choices", "error", *_PADDING)).items():
            if key == "object" and isinstance(value, str):
                self._top.put(key, value.removesuffix(".chunk"))
            elif isinstance(value, dict) and key != "usage":
                self._top.put(key, {**table(self._top.get(key)), **value})
            elif value is not None or key not in self._top:
                self._top.put(key, value)
        for place, choice in enumerate(tables(event.get("choices"))):
            index = number(choice.get("index"), place)
            self._choices.setdefault(index, _Choice(index)).add(choice)

    def fresh(self, event: Json) -> list[View]:
        """The texts and the fragments of calls in one chunk."""
        found: list[View] = []
        for choice in tables(table(event).get("choices")):
            delta = table(choice.get("delta"))
            found += [View(Kind.THINKING, words) for name in REASONING if (words := text(delta.get(name)))][:1]
            content = delta.get("content")
            if isinstance(content, list):
                found += [_seen(part) for part in tables(content)]
            found += [View(Kind.TEXT, words) for words in (text(content), text(choice.get("text"))) if words]
            found += [View(Kind.REFUSAL, words) for words in (text(delta.get("refusal")),) if words]
            for call in tables(delta.get("tool_calls")):
                inner = table(call.get("function") or call.get("custom"))
                words = text(inner.get("arguments")) or text(inner.get("input"))
                found.append(View(Kind.TOOL_CALL, words, text(inner.get("name")), text(call.get("id"))))
        return [view for view in found if view.text or view.name]


def _seen(part: Mapping[str, Json]) -> View:
    if part.get("type") == "thinking":
        return View(Kind.THINKING, "".join(text(each.get("text")) for each in tables(part.get("thinking"))))
    return View(kind_of(part), text(part.get("text")))

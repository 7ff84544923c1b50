"""Gemini's generateContent, on the Gemini API, on Vertex AI and in Code Assist's wrapping: requests, replies, the stream.

Pure. Usage repeats cumulative totals, so the last that is there counts. Plain texts that follow each other are one part; a signed
part (``thoughtSignature``) is one of its own, always. Owns no framing.
"""

from collections.abc import Mapping

from .gather import Growing, items, number, table, tables, text, without
from .model import Block, Dialect, Json, Kind, Message, NotReadable, Prompt, Reply, View
from .partial_args import PartialArgs

DIALECT = Dialect.GEMINI

_TOLD_BY_PROMPT = ("model", "stream", "systemInstruction", "system_instruction", "tools", "contents")
_TOLD_BY_REPLY = ("responseId", "modelVersion", "candidates", "usageMetadata", "error")
_REQUEST_WRAP = ("model", "project", "request")


def kind_of(part: Mapping[str, Json]) -> Kind:
    """What a part is: Gemini tells by the member it has."""
    if "functionCall" in part or "executableCode" in part or "toolCall" in part:
        return Kind.TOOL_CALL
    if "functionResponse" in part or "codeExecutionResult" in part or "toolResponse" in part:
        return Kind.TOOL_RESULT
    if "text" in part:
        return Kind.THINKING if part.get("thought") is True else Kind.TEXT
    for name in ("inlineData", "fileData", "inline_data", "file_data"):
        if name in part:
            data = table(part[name])
            return _kind_of_media(text(data.get("mimeType")) or text(data.get("mime_type")))
    return Kind.OTHER


def _kind_of_media(media: str) -> Kind:
    start = media.partition("/")[0]
    return {"image": Kind.IMAGE, "audio": Kind.AUDIO}.get(start, Kind.DOCUMENT)


def _parts(content: Json) -> tuple[Block, ...]:
    """The parts of a content; Gemini takes a bare part, and a bare text, too."""
    if isinstance(content, str):
        content = {"parts": [{"text": content}]}
    parts = table(content).get("parts")
    if isinstance(parts, dict):
        parts = [parts]
    return tuple(Block(kind_of(part), part) for part in tables(parts))


def _message(content: Mapping[str, Json], role: str) -> Message:
    return Message(text(content.get("role")) or role, _parts(content), without(content, ("role", "parts")))


def read_prompt(body: Json) -> Prompt:
    """A request; Code Assist's wrapping is undone, what stood beside ``request`` is in ``params``. NotReadable: no object."""
    if not isinstance(body, dict):
        raise NotReadable("the request is no JSON object")
    beside: dict[str, Json] = {}
    if isinstance(body.get("request"), dict) and "contents" not in body:
        beside, body = without(body, ("model", "request")), {"model": body.get("model", ""), **table(body["request"])}
    contents = body.get("contents")
    if isinstance(contents, dict | str):
        contents = [contents]
    messages = [{"parts": [{"text": each}]} if isinstance(each, str) else each for each in items(contents)]
    system = body.get("systemInstruction", body.get("system_instruction"))
    return Prompt(
        DIALECT,
        text(body.get("model")).removeprefix("models/"),
        body.get("stream") is True,
        _parts(system),
        tuple(items(body.get("tools"))),
        tuple(_message(each, "user") for each in messages if isinstance(each, dict)),
        "",
        {**without(body, _TOLD_BY_PROMPT), **beside},
    )


def unwrapped(body: Mapping[str, Json]) -> dict[str, Json]:
    """A reply without Code Assist's ``{"response": ...}``; what stood beside it is kept."""
    inner = body.get("response")
    return {**without(body, ("response",)), **inner} if isinstance(inner, dict) else dict(body)


def read_reply(body: Json) -> Reply:
    """A reply, or an error body. NotReadable: it is no object."""
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    if not isinstance(body, dict):
        raise NotReadable("the reply is no JSON object")
    body = unwrapped(body)
    candidates = tables(body.get("candidates"))
    usage = body.get("usageMetadata")
    reasons = [text(each.get("finishReason")) for each in candidates]
    blocked = text(table(body.get("promptFeedback")).get("blockReason"))
    error = body.get("error") or None
    rest = without(body, _TOLD_BY_REPLY)
    beside = [without(each, ("content",)) for each in candidates]
    if len(candidates) > 1 or any(without(each, ("index", "finishReason")) for each in beside):
        rest["candidates"] = beside
    return Reply(
        DIALECT,
        text(body.get("responseId")),
        text(body.get("modelVersion")),
        tuple(_message(table(each.get("content")), "model") for each in candidates),
        next((reason for reason in reasons if reason), blocked),
        usage if isinstance(usage, dict) else None,
        error is None and (bool(blocked) or (bool(candidates) and all(reasons))),
        error,
        rest,
    )


class _Part:
    """A part that may grow: a text by texts behind it, a call by its arguments."""

    def __init__(self, part: Mapping[str, Json]) -> None:
        self._value = Growing(part)
        self._plain = _is_plain(part)
        self._thought = part.get("thought")
        self._args: PartialArgs | None = None
        call = part.get("functionCall")
        self.open = False
        """Whether a call goes on in the next part."""
        if isinstance(call, dict):
            self._call(call)

    def goes_on(self, part: Mapping[str, Json]) -> bool:
        """Add ``part`` if it continues this one; False if it is another one."""
        call = part.get("functionCall")
        if self.open and isinstance(call, dict) and not call.get("name"):
            for name, value in without(part, ("functionCall",)).items():
                self._value.merge(name, value)
            self._call(call)
            return True
        if not self._plain or not _is_plain(part) or self._thought != part.get("thought"):
            return False
        self._value.add("text", text(part.get("text")))
        return True

    def _call(self, call: Mapping[str, Json]) -> None:
        self.open = call.get("willContinue") is True
        if self._args is None:
            if not self.open and "partialArgs" not in call:
                return
            self._args = PartialArgs(call)
        else:
            self._args.more(call)

    def plain(self) -> dict[str, Json]:
        value = self._value.plain()
        if self._args is not None:
            value["functionCall"] = self._args.plain()
        return value


def _is_plain(part: Mapping[str, Json]) -> bool:
    return isinstance(part.get("text"), str) and set(part) <= {"text", "thought"}


class _Candidate:
    def __init__(self, index: int) -> None:
        self.index = index
        self.top = Growing({})
        self.content = Growing({})
        self.parts: list[_Part] = []

    def add(self, candidate: Mapping[str, Json]) -> None:
        for name, value in without(candidate, ("content",)).items():
            known = self.top.get(name)
            if isinstance(value, dict) and isinstance(known, dict):
                self.top.put(name, _absorbed(known, value))
            elif value is not None or name not in self.top:
                self.top.put(name, value)
        content = table(candidate.get("content"))
        for name, value in without(content, ("parts",)).items():
            self.content.put(name, value)
        for part in tables(content.get("parts")):
            if self.parts and self.parts[-1].goes_on(part):
                continue
            if part == {"text": ""}:
                continue  # the last chunk often has one; it says nothing
            self.parts.append(_Part(part))

    def plain(self) -> dict[str, Json]:
        content = {**self.content.plain(), "parts": [part.plain() for part in self.parts]}
        return {**self.top.plain(), "content": content}


def _absorbed(known: Mapping[str, Json], more: Mapping[str, Json]) -> dict[str, Json]:
    """What is told of a candidate in several chunks (grounding, citations): lists that differ go on, the rest is replaced."""
    found = dict(known)
    for name, value in more.items():
        before = found.get(name)
        if isinstance(value, list) and isinstance(before, list) and value[: len(before)] != before:
            found[name] = [*before, *(each for each in value if each not in before)]
        elif value is not None:
            found[name] = value
    return found


class Assembler:
    """Takes the chunks of a stream, or the elements of one JSON array."""

    def __init__(self) -> None:
        self._top: dict[str, Json] = {}
        self._usage: dict[str, Json] | None = None
        self._candidates: dict[int, _Candidate] = {}
        self.error: Json = None
        self.unknown: list[Json] = []

    @property
    def complete(self) -> bool:
        if self.error is not None:
            return False
        found = self._candidates.values()
        blocked = bool(table(self._top.get("promptFeedback")).get("blockReason"))
        return blocked or (bool(found) and all(each.top.get("finishReason") for each in found))

    def bodies(self) -> list[dict[str, Json]]:
        """The reply; none before anything has come."""
        if not self._top and not self._candidates and self._usage is None:
            return []
        body: dict[str, Json] = dict(self._top)
        body["candidates"] = [self._candidates[index].plain() for index in sorted(self._candidates)]
        if self._usage is not None:
            body["usageMetadata"] = dict(self._usage)
        return [body]

    def feed(self, event: Json, name: str = "") -> None:
        """One chunk."""
        if not isinstance(event, dict):
            if event != "[DONE]":
                self.unknown.append(event)
            return
        event = unwrapped(event)
        if event.get("error"):
            self.error = event["error"]
        elif name == "error":
            self.error = event
            return
        for key, value in without(event, ("candidates", "usageMetadata", "error")).items():
            if value is not None or key not in self._top:
                self._top[key] = value
        if isinstance(event.get("usageMetadata"), dict):
            told = {key: value for key, value in table(event["usageMetadata"]).items() if value is not None}
            self._usage = {**(self._usage or {}), **told}
        for place, candidate in enumerate(tables(event.get("candidates"))):
            index = number(candidate.get("index"), place)
            self._candidates.setdefault(index, _Candidate(index)).add(candidate)

    def end(self) -> None:
        """The dialect has an end of its own, which counts."""

    def fresh(self, event: Json) -> list[View]:
        """The texts and calls of one chunk."""
        found = []
        for candidate in tables(unwrapped(table(event)).get("candidates")):
            for part in tables(table(candidate.get("content")).get("parts")):
                kind = kind_of(part)
                call = table(part.get("functionCall"))
                words = text(part.get("text")) or "".join(
                    text(each.get("stringValue")) for each in tables(call.get("partialArgs"))
                )
                if words or call.get("name"):
                    found.append(View(kind, words, text(call.get("name")), text(call.get("id"))))
        return found

"""Which dialect an exchange speaks and what it asks for, told by its path and a few headers.

Pure. Owns the paths of the providers, with any prefix in front of them. The body is not looked at.
"""

import re
from collections.abc import Iterable
from urllib.parse import unquote

import attrs

from .model import Dialect

Headers = Iterable[tuple[str, str]]


@attrs.frozen
class Surface:
    """What an exchange is. ``kind``: ``turn`` (a model answers), ``websocket`` (turns over an upgraded connection),
    ``compact``, ``count_tokens``, ``models``, ``batch``, ``embeddings``, ``retrieve`` (a kept reply is fetched).

    ``model``, ``stream``: where the path tells them, for dialects that leave them out of the body.
    """

    dialect: Dialect
    kind: str
    model: str = ""
    stream: bool = False


_POSTED: tuple[tuple[re.Pattern[str], Dialect, str], ...] = (
    (re.compile(r"/v\d\w*/messages$"), Dialect.ANTHROPIC_MESSAGES, "turn"),
    (re.compile(r"/messages/count_tokens$"), Dialect.ANTHROPIC_MESSAGES, "count_tokens"),
    (re.compile(r"/messages/batches(?:/[^/]+/cancel)?$"), Dialect.ANTHROPIC_MESSAGES, "batch"),
    (re.compile(r"/chat/completions$"), Dialect.OPENAI_CHAT, "turn"),
    (re.compile(r"(?<!/chat)/completions$"), Dialect.OPENAI_COMPLETIONS, "turn"),
    (re.compile(r"/responses$"), Dialect.OPENAI_RESPONSES, "turn"),
    (re.compile(r"/responses/compact$"), Dialect.OPENAI_RESPONSES, "compact"),
    (re.compile(r"/responses/input_tokens(?:/count)?$"), Dialect.OPENAI_RESPONSES, "count_tokens"),
    (re.compile(r"/responses/[^/]+/cancel$"), Dialect.OPENAI_RESPONSES, "retrieve"),
    (re.compile(r"/interactions$"), Dialect.GEMINI_INTERACTIONS, "turn"),
    (re.compile(r"/v\d\w*/batches(?:/[^/]+/cancel)?$"), Dialect.OPENAI_CHAT, "batch"),
    (re.compile(r"/embeddings$"), Dialect.OPENAI_CHAT, "embeddings"),
)

_FETCHED: tuple[tuple[re.Pattern[str], Dialect, str], ...] = (
    (re.compile(r"/messages/batches(?:/[^/]+(?:/results)?)?$"), Dialect.ANTHROPIC_MESSAGES, "batch"),
    (re.compile(r"/responses/[^/]+$"), Dialect.OPENAI_RESPONSES, "retrieve"),
    (re.compile(r"/chat/completions/[^/]+$"), Dialect.OPENAI_CHAT, "retrieve"),
    (re.compile(r"/interactions/[^/]+$"), Dialect.GEMINI_INTERACTIONS, "retrieve"),
    (re.compile(r"/v\d\w*/batches(?:/[^/]+)?$"), Dialect.OPENAI_CHAT, "batch"),
)

_GOOGLE = re.compile(r"(?:/(?P<model>[^/:]+))?:(?P<verb>\w+)$")
_VERBS = {
    "generateContent": "turn",
    "streamGenerateContent": "turn",
    "countTokens": "count_tokens",
    "batchGenerateContent": "batch",
    "embedContent": "embeddings",
    "batchEmbedContents": "embeddings",
}
_RAW = ("rawPredict", "streamRawPredict")
_PUBLISHERS = {"anthropic": Dialect.ANTHROPIC_MESSAGES, "mistralai": Dialect.OPENAI_CHAT}

_BEDROCK = re.compile(r"/model/(?P<model>.+)/(?P<verb>invoke|invoke-with-response-stream|count-tokens)$")
_OTHERS = re.compile(
    r"(?:^|[./])(?:amazon|meta|mistral|cohere|ai21|deepseek|openai|qwen|stability|writer|luma|twelvelabs)\."
)
"""Models on Bedrock whose payload is not Anthropic's. What names no maker (an inference profile) is taken for Anthropic's."""

_MODELS = re.compile(r"/v\d\w*/models(?:/.+)?$")
_DEPLOYMENT = re.compile(r"/deployments/(.+?)/(?:chat/completions|completions|embeddings|responses)$")


def header(headers: Headers, name: str) -> str:
    """The values of a header, joined by commas; "" for none."""
    return ", ".join(value for known, value in headers if known.lower() == name)


def path_of(target: str) -> str:
    """The path in a request target: no scheme and host, no query, percent-encoding undone, no slash at the end."""
    path = target.partition("?")[0].partition("#")[0]
    if "://" in path[:8]:
        path = "/" + path.partition("://")[2].partition("/")[2]
    return re.sub("//+", "/", unquote(path, errors="replace")).rstrip("/")


def detect(method: str, target: str, request_headers: Headers, response_headers: Headers = ()) -> Surface | None:
    """What an exchange is; None for what is no model's API, or none that is known here."""
    method, path = method.upper(), path_of(target)
    request_headers = list(request_headers)
    if method == "GET" and path.endswith("/responses"):
        upgrade = header(request_headers, "upgrade") or header(response_headers, "upgrade")
        return Surface(Dialect.OPENAI_RESPONSES, "websocket", stream=True) if "websocket" in upgrade.lower() else None
    if method == "POST":
        return _google(path) or _bedrock(path) or _listed(_POSTED, path)
    if method != "GET":
        return None
    if _MODELS.search(path):
        return Surface(_by_headers(request_headers), "models")
    return _listed(_FETCHED, path)


def _listed(table: Iterable[tuple[re.Pattern[str], Dialect, str]], path: str) -> Surface | None:
    for pattern, dialect, kind in table:
        if pattern.search(path):
            deployment = _DEPLOYMENT.search(path)
            return Surface(dialect, kind, deployment[1] if deployment is not None else "")
    return None


def _google(path: str) -> Surface | None:
    match = _GOOGLE.search(path)
    if match is None:
        return None
    model, verb = match["model"] or "", match["verb"]
    if verb in _RAW:
        publisher = re.search(r"/publishers/([^/]+)/", path)
        dialect = _PUBLISHERS.get(publisher[1] if publisher is not None else "anthropic")
        if dialect is None:
            return None
        if model == "count-tokens":
            return Surface(dialect, "count_tokens")
        return Surface(dialect, "turn", model, verb == "streamRawPredict")
    if verb not in _VERBS:
        return None
    model = "" if model.startswith("v1") and "/models/" not in path else model
    return Surface(Dialect.GEMINI, _VERBS[verb], model, verb == "streamGenerateContent")


def _bedrock(path: str) -> Surface | None:
    match = _BEDROCK.search(path)
    if match is None or _OTHERS.search(match["model"]):
        return None
    kind = "count_tokens" if match["verb"] == "count-tokens" else "turn"
    return Surface(Dialect.ANTHROPIC_MESSAGES, kind, match["model"], match["verb"] == "invoke-with-response-stream")


def _by_headers(headers: Headers) -> Dialect:
    """Whose list of models: all three providers use the same path."""
    names = {name.lower() for name, _ in headers}
    if "x-goog-api-key" in names:
        return Dialect.GEMINI
    return Dialect.ANTHROPIC_MESSAGES if "anthropic-version" in names else Dialect.OPENAI_CHAT

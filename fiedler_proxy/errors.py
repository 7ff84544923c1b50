"""What can go wrong, by whose fault, and how it is said in the caller's dialect.

Pure: builds status, headers and body bytes; sends nothing. Upstream errors never come here, they pass verbatim.
"""

import enum
import json
from collections.abc import Iterable, Mapping
from typing import Any

import attrs


class Fault(enum.StrEnum):
    """Whose fault an error is."""

    CALLER = "caller"
    UPSTREAM = "upstream"
    GATEWAY = "gateway"


class Dialect(enum.StrEnum):
    """The shape in which a caller expects errors."""

    ANTHROPIC = "anthropic"
    OPENAI = "openai"
    GEMINI = "gemini"
    PROBLEM = "problem"


class SettingsError(Exception):
    """The gateway cannot start as configured; ``faults`` holds every fault, one sentence each."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


class ExchangeError(Exception):
    """An exchange ends with an answer of the gateway's own.

    ``code`` is stable and documented; ``hint`` says what to do; ``retry`` False tells SDKs not to try again
    (``x-should-retry``), None leaves that to the status; ``headers`` are added to the answer.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int,
        fault: Fault = Fault.CALLER,
        hint: str = "",
        retry: bool | None = None,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.fault = fault
        self.hint = hint
        self.retry = retry
        self.headers = tuple(headers)


def body_too_large(limit: int) -> ExchangeError:
    """413: the body is longer than ``limit`` bytes."""
    return ExchangeError(
        "body_too_large",
        f"The request body is longer than the {limit} bytes this gateway accepts.",
        status=413,
        hint="raise limits.request_body in its configuration",
        retry=False,
    )


def malformed_body() -> ExchangeError:
    """400: the body breaks its own framing."""
    return ExchangeError("malformed_body", "The request body is malformed.", status=400, retry=False)


_OPENAI_PATHS = ("/v1/chat/", "/v1/responses", "/v1/completions", "/v1/embeddings", "/v1/images", "/v1/audio",
                 "/v1/realtime", "/openai/", "/v1/moderations", "/v1/fine_tuning", "/v1/assistants", "/v1/threads")  # fmt: skip
_ANTHROPIC_PATHS = ("/v1/messages", "/v1/complete", "/anthropic", "/model/", "/api/event_logging")
_GEMINI_MARKS = (":generateContent", ":streamGenerateContent", ":countTokens", ":embedContent", ":batchEmbedContents")


def dialect_of(path: str, names: Iterable[str], *, bearer: bool = False) -> Dialect:
    """Which dialect a caller speaks: told by its header names (lower case) first, then by the path.

    ``bearer`` says that the credential is ``Authorization: Bearer``, which on an otherwise unknown ``/v1`` path means
    OpenAI. A caller that gives no sign gets RFC 9457 problem details.
    """
    seen = set(names)
    if "x-goog-api-key" in seen:
        return Dialect.GEMINI
    if "anthropic-version" in seen or "anthropic-beta" in seen:
        return Dialect.ANTHROPIC
    if not seen.isdisjoint(("openai-organization", "openai-project", "openai-beta")):
        return Dialect.OPENAI
    return _dialect_of_path(path, "x-api-key" in seen, bearer)


def _dialect_of_path(path: str, has_api_key: bool, bearer: bool) -> Dialect:
    if any(mark in path for mark in _GEMINI_MARKS) or path.startswith("/v1beta"):
        return Dialect.GEMINI
    if path.startswith(_ANTHROPIC_PATHS) or path.endswith(("/messages", "rawPredict", "RawPredict")):
        return Dialect.ANTHROPIC
    if path.startswith(_OPENAI_PATHS) or path.endswith(("/chat/completions", "/responses")):
        return Dialect.OPENAI
    if has_api_key:
        return Dialect.ANTHROPIC
    return Dialect.OPENAI if bearer and path.startswith("/v1/") else Dialect.PROBLEM


@attrs.frozen
class Answer:
    """A rendered error: what to send."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def render(error: ExchangeError, dialect: Dialect, request_id: str, hop: str = "") -> Answer:
    """``error`` as a whole answer in ``dialect``: envelope, content type, request id, retry advice. ``hop``: which of several gateways
    in a row says so."""
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    document = _ENVELOPES[dialect](error, message, request_id)
    headers = [("Content-Type", "application/problem+json" if dialect is Dialect.PROBLEM else "application/json")]
    if request_id:
        headers.append(("x-kgb-request-id", request_id))
        if dialect in _ID_HEADERS:
            headers.append((_ID_HEADERS[dialect], request_id))
    headers.append(("x-kgb-error", error.code))
    if hop:
        headers.append(("x-kgb-hop", hop))
    if error.retry is not None:
        headers.append(("x-should-retry", "true" if error.retry else "false"))
    headers.extend(error.headers)
    return Answer(error.status, tuple(headers), json.dumps(document).encode())


# The header from which each provider's SDK takes the id that it shows in its exceptions.
_ID_HEADERS: Mapping[Dialect, str] = {Dialect.ANTHROPIC: "request-id", Dialect.OPENAI: "x-request-id"}

# https://platform.claude.com/docs/en/api/errors
_ANTHROPIC_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 504: "timeout_error", 529: "overloaded_error",
}  # fmt: skip
# https://cloud.google.com/apis/design/errors#error_model
_GOOGLE_STATUSES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
    413: "OUT_OF_RANGE", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 501: "UNIMPLEMENTED", 502: "UNAVAILABLE",
    503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED", 508: "FAILED_PRECONDITION",
}  # fmt: skip


def _anthropic(error: ExchangeError, message: str, request_id: str) -> dict[str, Any]:
    fallback = "invalid_request_error" if error.status < 500 else "api_error"
    kind = _ANTHROPIC_TYPES.get(error.status, fallback)
    body = {"type": kind, "message": message, "code": error.code}
    return {"type": "error", "error": body, "request_id": request_id}


def _openai(error: ExchangeError, message: str, request_id: str) -> dict[str, Any]:
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": error.code, "request_id": request_id}}


def _gemini(error: ExchangeError, message: str, request_id: str) -> dict[str, Any]:
    status = _GOOGLE_STATUSES.get(error.status, "FAILED_PRECONDITION" if error.status < 500 else "INTERNAL")
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": error.code.upper(),
        "domain": "kgb-gateway",
        "metadata": {"request_id": request_id},
    }
    return {"error": {"code": error.status, "message": message, "status": status, "details": [info]}}


def _problem(error: ExchangeError, message: str, request_id: str) -> dict[str, Any]:
    """RFC 9457: ``type`` about:blank with extension members."""
    return {
        "type": "about:blank",
        "title": error.code.replace("_", " "),
        "status": error.status,
        "detail": error.message,
        "code": error.code,
        "fault": str(error.fault),
        "hint": error.hint,
        "request_id": request_id,
    }


_ENVELOPES = {
    Dialect.ANTHROPIC: _anthropic,
    Dialect.OPENAI: _openai,
    Dialect.GEMINI: _gemini,
    Dialect.PROBLEM: _problem,
}

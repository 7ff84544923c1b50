"""Which dialect an exchange speaks."""

import pytest

from kgb_gateway.dewey.transcripts.detect import Surface, detect
from kgb_gateway.dewey.transcripts.model import Dialect

A, C, L, R, G, N = (
    Dialect.ANTHROPIC_MESSAGES, Dialect.OPENAI_CHAT, Dialect.OPENAI_COMPLETIONS, Dialect.OPENAI_RESPONSES, Dialect.GEMINI,
    Dialect.GEMINI_INTERACTIONS,
)  # fmt: skip

POSTS = [
    ("/v1/messages?beta=true", Surface(A, "turn")),
    ("/anthropic-proxy/v1/messages", Surface(A, "turn")),
    ("https://api.anthropic.com/v1/messages", Surface(A, "turn")),
    ("//v1//messages/", Surface(A, "turn")),
    ("/v1%2Fmessages", Surface(A, "turn")),
    ("/v1/messages/count_tokens?beta=true", Surface(A, "count_tokens")),
    ("/v1/messages/batches", Surface(A, "batch")),
    ("/v1/chat/completions", Surface(C, "turn")),
    ("/api/v1/chat/completions", Surface(C, "turn")),
    ("/v1beta/openai/chat/completions", Surface(C, "turn")),
    ("/openai/deployments/my%2Fgpt/chat/completions?api-version=1", Surface(C, "turn", "my/gpt")),
    ("/openai/deployments/gpt-4o/chat/completions?api-version=1", Surface(C, "turn", "gpt-4o")),
    ("/openai/deployments/old/completions", Surface(L, "turn", "old")),
    ("/v1/completions", Surface(L, "turn")),
    ("/v1/responses", Surface(R, "turn")),
    ("/openai/v1/responses?api-version=preview", Surface(R, "turn")),
    ("/backend-api/codex/responses", Surface(R, "turn")),
    ("/v1/responses/compact", Surface(R, "compact")),
    ("/v1/responses/input_tokens", Surface(R, "count_tokens")),
    ("/v1beta/models/gemini-3-pro:generateContent?key=x", Surface(G, "turn", "gemini-3-pro")),
    ("/v1/models/gemini-3-pro:streamGenerateContent?alt=sse", Surface(G, "turn", "gemini-3-pro", True)),
    ("/v1beta/models/gemini-3-pro:countTokens", Surface(G, "count_tokens", "gemini-3-pro")),
    ("/v1beta/models/gemini-3-pro%3AgenerateContent", Surface(G, "turn", "gemini-3-pro")),
    ("/v1internal:streamGenerateContent?alt=sse", Surface(G, "turn", "", True)),
    ("/v1/projects/p/locations/l/publishers/google/models/g:generateContent", Surface(G, "turn", "g")),
    ("/v1beta/models/e:embedContent", Surface(G, "embeddings", "e")),
    ("/v1beta/interactions", Surface(N, "turn")),
    ("/v1/projects/p/locations/l/publishers/anthropic/models/claude-x@1:rawPredict", Surface(A, "turn", "claude-x@1")),
    (
        "/v1/projects/p/locations/l/publishers/anthropic/models/claude-x:streamRawPredict",
        Surface(A, "turn", "claude-x", True),
    ),
    (
        "/v1/projects/p/locations/l/publishers/anthropic/models/count-tokens:rawPredict",
        Surface(A, "count_tokens"),
    ),
    ("/v1/projects/p/locations/l/publishers/mistralai/models/m:rawPredict", Surface(C, "turn", "m")),
    ("/model/anthropic.claude-v9%3A0/invoke", Surface(A, "turn", "anthropic.claude-v9:0")),
    ("/model/us.anthropic.claude-x/invoke-with-response-stream", Surface(A, "turn", "us.anthropic.claude-x", True)),
    (
        "/model/arn%3Aaws%3Abedrock%3Aeu%3A1%3Ainference-profile%2Fabc/invoke",
        Surface(A, "turn", "arn:aws:bedrock:eu:1:inference-profile/abc"),
    ),
    ("/v1/embeddings", Surface(C, "embeddings")),
    ("/v1/batches", Surface(C, "batch")),
]


@pytest.mark.parametrize(("target", "surface"), POSTS)
def test_what_is_posted(target: str, surface: Surface) -> None:
    assert detect("POST", target, [], []) == surface


@pytest.mark.parametrize("target", [
    "/", "/health", "/v1/files", "/v1/threads/t/messages", "/model/amazon.titan/invoke", "/model/us.meta.llama/invoke",
    "/model/anthropic.claude/converse", "/v1beta/models/m:somethingElse", "/v1/audio/speech", "*", "",
    "/v1/projects/p/publishers/meta/models/m:rawPredict",
])  # fmt: skip
def test_what_is_no_models_api_or_an_unknown_one(target: str) -> None:
    assert detect("POST", target, [], []) is None


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE"])
def test_turns_are_posted(method: str) -> None:
    assert detect(method, "/v1/messages", [], []) is None


@pytest.mark.parametrize(
    ("headers", "dialect"),
    [
        ([], C),
        ([("Anthropic-Version", "2026-10-21")], A),
        ([("X-Goog-Api-Key", "k")], G),
        ([("Authorization", "Bearer k")], C),
    ],
)
def test_lists_of_models_are_told_apart_by_headers(headers: list[tuple[str, str]], dialect: Dialect) -> None:
    assert detect("GET", "/v1/models?limit=1000", headers, []) == Surface(dialect, "models")
    assert detect("get", "/v1/models/x%2Fy", headers, []) == Surface(dialect, "models")


def test_a_kept_reply_is_fetched() -> None:
    assert detect("GET", "/v1/responses/resp_1", [], []) == Surface(R, "retrieve")
    assert detect("GET", "/v1/messages/batches/b/results", [], []) == Surface(A, "batch")


def test_responses_over_a_websocket() -> None:
    upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket")]
    assert detect("GET", "/v1/responses", upgrade, []) == Surface(R, "websocket", "", True)
    assert detect("GET", "/v1/responses", [], upgrade) == Surface(R, "websocket", "", True)
    assert detect("GET", "/v1/responses", [], []) is None

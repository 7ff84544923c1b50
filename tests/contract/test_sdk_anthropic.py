"""The official anthropic SDK as a caller: it cannot tell that anything stands in between."""

import json
import socket
import ssl
from collections.abc import Iterator, Sequence
from typing import Any

import anthropic
import pytest
from aiohttp import web
from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient

from fiedler_proxy.lifecycle import EXCHANGE
from fiedler_proxy.server import Handler
from fiedler_proxy.testing import (
    ReceivedRequest,
    Script,
    ScriptedUpstream,
    UpstreamConnection,
    chunk_bytes,
    respond,
    serve_forever,
    sse,
)
from tests.integration.helpers import relaying

from .comparing import Call, Failure, same

TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Nothing here speaks TLS: this spares each client the loading of every CA of the system."""

ASK: dict[str, Any] = {
    "model": "claude-test",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "How warm is it in Paris? caf\xe9"}],
}
TOOL: Any = {
    "name": "weather",
    "description": "d",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
JSON = ("Content-Type", "application/json")
REQUEST_ID = ("request-id", "req_011CSHoEeqs5C35K2UUqR7Fy")

USAGE = {"input_tokens": 12, "output_tokens": 5, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 0}
MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-test", "stop_reason": "tool_use",
    "stop_sequence": None, "usage": USAGE,
    "content": [
        {"type": "thinking", "thinking": "Let me see.", "signature": "EuYBCkQYAiJA"},
        {"type": "text", "text": "I look it up \xe9."},
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}},
    ],
}  # fmt: skip


def event(payload: dict[str, Any]) -> bytes:
    return sse((payload["type"], payload))


def delta(index: int, **change: str) -> bytes:
    return event({"type": "content_block_delta", "index": index, "delta": change})


STREAM = [
    event({"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}}),
    event({"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}}),
    delta(0, type="thinking_delta", thinking="Let me see."),
    delta(0, type="signature_delta", signature="EuYBCkQYAiJA"),
    event({"type": "content_block_stop", "index": 0}),
    event({"type": "ping"}),
    event({"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}}),
    delta(1, type="text_delta", text="I look it "),
    delta(1, type="text_delta", text="up \xe9."),
    event({"type": "content_block_stop", "index": 1}),
    event({
        "type": "content_block_start", "index": 2,
        "content_block": {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}},
    }),
    delta(2, type="input_json_delta", partial_json='{"city": "Pa'),
    delta(2, type="input_json_delta", partial_json='ris"}'),
    event({"type": "content_block_stop", "index": 2}),
    event({"type": "an_event_of_the_future", "payload": [1, 2, 3]}),
    event({"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}, "usage": USAGE}),
    event({"type": "message_stop"}),
]  # fmt: skip

MID_STREAM_ERROR = event(
    {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}, "request_id": "req_1"}
)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, no key of the user's, no waiting between retries."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy",
                 "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "ANTHROPIC_CUSTOM_HEADERS"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("anthropic._base_client.INITIAL_RETRY_DELAY", 0.001)


def client(url: str, retries: int = 0) -> AsyncAnthropic:
    http = DefaultAsyncHttpxClient(verify=TLS)
    return AsyncAnthropic(base_url=url, api_key="sk-ant-s3cret", max_retries=retries, http_client=http)


def streaming(events: Sequence[bytes], *, end: bool = True) -> Script:
    """Every request gets ``events``, each in a flush of its own; without ``end`` the connection closes instead."""

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await request.body()
        head = [("Content-Type", "text/event-stream; charset=utf-8"), REQUEST_ID, ("anthropic-organization-id", "org")]
        await conn.send_head(200, [*head, ("Transfer-Encoding", "chunked")])
        for piece in events:
            await conn.chunk(piece)
        if end:
            await conn.end_chunks()
        else:
            conn.close()

    return script


def error(status: int, kind: str, message: str, *headers: tuple[str, str]) -> Script:
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": REQUEST_ID[1]}
    return respond(status, [JSON, REQUEST_ID, *headers], json.dumps(body, indent=1).encode())


async def create(url: str) -> object:
    async with client(url) as sdk:
        message = await sdk.messages.create(**ASK, tools=[TOOL])
        return message.to_dict(), message._request_id


async def stream(url: str) -> object:
    async with client(url) as sdk:
        return [event.to_dict() async for event in await sdk.messages.create(**ASK, stream=True)]


def retrying(retries: int) -> Call:
    async def call(url: str) -> object:
        async with client(url, retries) as sdk:
            return (await sdk.messages.create(**ASK)).to_dict()

    return call


class TestAnswers:
    async def test_a_message(self) -> None:
        met = await same(respond(200, [JSON, REQUEST_ID], json.dumps(MESSAGE).encode()), create)
        assert isinstance(met.result, tuple)
        message, request_id = met.result
        assert message["content"][2]["input"] == {"city": "Paris"}
        assert request_id == REQUEST_ID[1]
        (sent,) = met.sent
        assert (sent.method, sent.target) == ("POST", b"/v1/messages")
        assert json.loads(sent.body)["messages"] == ASK["messages"]

    async def test_a_stream_of_events(self) -> None:
        met = await same(streaming(STREAM), stream)
        assert isinstance(met.result, list)
        assert [event["type"] for event in met.result].count("content_block_delta") == 6
        assert met.result[-1] == {"type": "message_stop"}

    async def test_a_stream_gathered_into_a_message(self) -> None:
        async def call(url: str) -> object:
            async with client(url) as sdk, sdk.messages.stream(**ASK, tools=[TOOL]) as stream:
                texts = [text async for text in stream.text_stream]
                return texts, (await stream.get_final_message()).to_dict(), stream.request_id

        met = await same(streaming(STREAM), call)
        assert isinstance(met.result, tuple)
        texts, message, request_id = met.result
        assert texts == ["I look it ", "up \xe9."]
        assert message["content"] == MESSAGE["content"]
        assert message["usage"] == USAGE
        assert request_id == REQUEST_ID[1]

    async def test_events_split_anywhere(self) -> None:
        wire = b"".join(STREAM)
        met = await same(streaming([wire[i : i + 7] for i in range(0, len(wire), 7)]), stream)
        assert isinstance(met.result, list)
        assert met.result[-1] == {"type": "message_stop"}

    async def test_other_endpoints(self) -> None:
        async def call(url: str) -> object:
            async with client(url) as sdk:
                count = await sdk.messages.count_tokens(model=ASK["model"], messages=ASK["messages"])
                models = await sdk.models.list(limit=1000)
                return count.to_dict(), [model.to_dict() for model in models.data]

        answers: dict[bytes, object] = {
            b"/v1/messages/count_tokens": {"input_tokens": 14},
            b"/v1/models?limit=1000": {
                "data": [{"type": "model", "id": "m", "display_name": "M", "created_at": "2026-01-01T00:00:00Z"}],
                "has_more": False, "first_id": "m", "last_id": "m",
            },
        }  # fmt: skip

        @serve_forever
        async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
            await request.body()
            await conn.send_response(200, [JSON], json.dumps(answers[request.target]).encode())

        met = await same(script, call)
        assert [sent.target for sent in met.sent] == list(answers)

    async def test_betas_and_unknown_fields_pass(self) -> None:
        async def call(url: str) -> object:
            async with client(url) as sdk:
                message = await sdk.beta.messages.create(
                    **ASK,
                    betas=["context-1m-2025-08-07", "a-beta-of-the-future"],
                    extra_body={"a_field_of_the_future": {"b": 1, "a": None}},
                    extra_headers={"x-claude-code-session-id": "s-1"},
                )
                return message.to_dict()

        met = await same(respond(200, [JSON], json.dumps(MESSAGE).encode()), call)
        (sent,) = met.sent
        assert sent.target.startswith(b"/v1/messages")  # newer releases add no ?beta=true
        assert dict(sent.headers)[b"anthropic-beta"] == b"context-1m-2025-08-07,a-beta-of-the-future"
        assert b'"a_field_of_the_future":{"b":1,"a":null}' in sent.body.replace(b" ", b"")


ERRORS = [
    (400, "invalid_request_error", "prompt is too long: 250000 tokens > 200000 maximum", anthropic.BadRequestError),
    (401, "authentication_error", "invalid x-api-key", anthropic.AuthenticationError),
    (403, "permission_error", "no", anthropic.PermissionDeniedError),
    (404, "not_found_error", "model: nope", anthropic.NotFoundError),
    (429, "rate_limit_error", "slow down", anthropic.RateLimitError),
    (500, "api_error", "Internal server error", anthropic.InternalServerError),
    (529, "overloaded_error", "Overloaded", anthropic.InternalServerError),
]


class TestErrors:
    @pytest.mark.parametrize(("status", "kind", "message", "expected"), ERRORS)
    @pytest.mark.parametrize("call", [create, stream], ids=["create", "stream"])
    async def test_an_error_of_the_provider(
        self, status: int, kind: str, message: str, expected: type[Exception], call: Call
    ) -> None:
        script = error(status, kind, message, ("retry-after", "7"), ("x-should-retry", "false"))
        met = await same(script, call)
        assert message in met.failure.message
        assert met.failure.request_id == REQUEST_ID[1]
        name = met.failure.kind.rpartition(".")[2]
        assert issubclass(getattr(anthropic, name, None) or getattr(anthropic._exceptions, name), expected)

    async def test_an_error_in_mid_stream(self) -> None:
        met = await same(streaming([*STREAM[:8], MID_STREAM_ERROR]), stream)
        assert "overloaded_error" in met.failure.message
        assert met.failure.request_id == REQUEST_ID[1]

    @pytest.mark.parametrize("count", [0, 1, 8, len(STREAM)])
    async def test_a_stream_that_breaks(self, count: int) -> None:
        """Also behind its last event: without the last chunk nobody knows that it was the last."""
        met = await same(streaming(STREAM[:count], end=False), stream)
        assert isinstance(met.result, Failure)

    async def test_a_body_that_ends_early(self) -> None:
        @serve_forever
        async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
            await request.body()
            await conn.send_head(200, [JSON, REQUEST_ID, ("Content-Length", "1000")])
            await conn.send(b'{"id": "msg_1", ')
            conn.close()

        met = await same(script, create)
        assert isinstance(met.result, Failure)

    async def test_an_event_cut_in_two_by_a_break(self) -> None:
        @serve_forever
        async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
            await request.body()
            await conn.send_head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
            await conn.send(chunk_bytes(STREAM[0])[:50])
            conn.close()

        assert isinstance((await same(script, stream)).result, Failure)


class TestRetries:
    """As many tries through the gateway as without it: it adds none and eats none."""

    @pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
    async def test_what_is_retried_is_retried_as_often(self, status: int) -> None:
        met = await same(error(status, "api_error", "again", ("retry-after-ms", "1")), retrying(2))
        assert len(met.sent) == 3
        counts = [dict(sent.headers)[b"x-stainless-retry-count"] for sent in met.sent]
        assert counts == [b"0", b"1", b"2"]

    @pytest.mark.parametrize(("status", "advice", "tries"), [(400, "true", 3), (529, "false", 1), (400, None, 1)])
    async def test_the_providers_advice_is_heard(self, status: int, advice: str | None, tries: int) -> None:
        headers = [("retry-after-ms", "1"), *([("x-should-retry", advice)] if advice else [])]
        met = await same(error(status, "api_error", "m", *headers), retrying(2))
        assert len(met.sent) == tries

    async def test_success_after_a_failure(self) -> None:
        @serve_forever
        async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
            await request.body()
            if dict(request.headers)[b"x-stainless-retry-count"] == b"0":
                await conn.send_response(529, [JSON, ("retry-after-ms", "1")], b"{}")
            else:
                await conn.send_response(200, [JSON], json.dumps(MESSAGE).encode())

        met = await same(script, retrying(2))
        assert len(met.sent) == 2
        assert isinstance(met.result, dict)


@pytest.fixture
def refusing() -> Iterator[str]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


class TestTheGatewaysOwnErrors:
    async def test_an_unreachable_upstream_is_an_error_with_our_request_id(self, refusing: str) -> None:
        async with relaying(refusing) as serving:
            with pytest.raises(anthropic.APIStatusError) as caught:
                await create(serving.address.url)
            (record,) = await serving.records.ended()
        assert isinstance(caught.value, anthropic.InternalServerError)
        assert caught.value.status_code == 502
        assert record.exchange is not None
        assert caught.value.request_id == record.exchange.id
        assert caught.value.type == "api_error"
        assert "refused the connection" in str(caught.value)
        assert "s3cret" not in str(caught.value)

    async def test_it_is_retried_like_a_providers(self, refusing: str) -> None:
        async with relaying(refusing) as serving:
            with pytest.raises(anthropic.InternalServerError):
                await retrying(2)(serving.address.url)
            assert len(await serving.records.ended(3)) == 3

    async def test_a_body_over_the_limit_is_not_retried(self) -> None:
        async with ScriptedUpstream() as upstream, relaying(upstream, body_limit=10) as serving:
            with pytest.raises(anthropic.APIStatusError) as caught:
                await retrying(2)(serving.address.url)
            assert caught.value.status_code == 413
            assert caught.value.type == "request_too_large"
            assert len(await serving.records.ended(1)) == 1
            assert upstream.requests == []


@pytest.mark.parametrize("spoil", ["request", "response"])
async def test_the_comparison_itself_sees_a_difference(spoil: str) -> None:
    """The tests above are worth something only if a gateway that changes a header fails them."""

    async def spoiling(request: web.Request, handler: Handler) -> web.StreamResponse:
        exchange = request[EXCHANGE]
        if spoil == "request":
            exchange.request_headers = (*exchange.request_headers, (b"x-added", b"1"))
        else:
            exchange.add_response_header("x-added", "1")
        return await handler(request)

    with pytest.raises(AssertionError):
        await same(error(400, "invalid_request_error", "m"), create, spoiling)

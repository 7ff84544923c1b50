"""The official openai SDK as a caller: Chat Completions, Responses and what stands beside them, with their errors."""

import json
import socket
import ssl
from collections.abc import Iterator, Sequence
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from fiedler_proxy.exchange import Outcome
from fiedler_proxy.testing import (
    ReceivedRequest,
    Rendezvous,
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

MODEL = "gpt-test"
ASK: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "How warm is it in Paris? caf\xe9"}]}
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
JSON = ("Content-Type", "application/json")
REQUEST_ID = ("x-request-id", "req_7f21c2")

COMPLETION = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL,
    "choices": [{
        "index": 0, "finish_reason": "tool_calls", "logprobs": None,
        "message": {
            "role": "assistant", "content": None, "refusal": None,
            "tool_calls": [{"id": "call_1", "type": "function",
                            "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}],
        },
    }],
    "usage": {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17},
}  # fmt: skip


def chunk(delta: dict[str, Any], finish: str | None = None, **more: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return sse(json.dumps({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL,
                           "choices": [choice], **more}))  # fmt: skip


def call_fragment(**function: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "function": function}]}


CHAT = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "I look it "}),
    chunk({"content": "up \xe9."}),
    chunk({"tool_calls": [{"index": 0, "id": "call_1", "type": "function",
                           "function": {"name": "weather", "arguments": ""}}]}),
    chunk(call_fragment(arguments='{"city": "Pa')),
    chunk(call_fragment(arguments='ris"}')),
    chunk({}, "tool_calls"),
    chunk({}, None, choices=[], usage=COMPLETION["usage"]),
    sse("[DONE]"),
]  # fmt: skip

RESPONSE = {
    "id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": MODEL, "error": None,
    "incomplete_details": None, "instructions": None, "metadata": {}, "parallel_tool_calls": True, "temperature": 1.0,
    "tool_choice": "auto", "tools": [], "top_p": 1.0,
    "output": [{"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
                "content": [{"type": "output_text", "text": "18 degrees \xe9", "annotations": []}]}],
    "usage": {"input_tokens": 3, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 2,
              "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 5},
}  # fmt: skip


def named(kind: str, number: int, **payload: object) -> bytes:
    return sse((kind, {"type": kind, "sequence_number": number, **payload}))


RESPONSES = [
    named("response.created", 0, response={**RESPONSE, "status": "in_progress", "output": []}),
    named(
        "response.output_text.delta", 1, item_id="msg_1", output_index=0, content_index=0, delta="18 deg", logprobs=[]
    ),
    named(
        "response.output_text.delta",
        2,
        item_id="msg_1",
        output_index=0,
        content_index=0,
        delta="rees \xe9",
        logprobs=[],
    ),
    named("response.an_event_of_the_future", 3, anything=[1]),
    named("response.completed", 4, response=RESPONSE),
]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, no key of the user's, no waiting between retries."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy",
                 "OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)


def client(url: str, retries: int = 0) -> AsyncOpenAI:
    http = DefaultAsyncHttpxClient(verify=TLS)
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-s3cret", max_retries=retries, http_client=http)


def streaming(events: Sequence[bytes], *, end: bool = True) -> Script:
    """Every request gets ``events``, each in a flush of its own; without ``end`` the connection closes instead."""

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await request.body()
        head = [("Content-Type", "text/event-stream"), REQUEST_ID, ("openai-processing-ms", "12")]
        await conn.send_head(200, [*head, ("Transfer-Encoding", "chunked")])
        for piece in events:
            await conn.chunk(piece)
        if end:
            await conn.end_chunks()
        else:
            conn.close()

    return script


def answering(document: object, status: int = 200, *headers: tuple[str, str]) -> Script:
    return respond(status, [JSON, REQUEST_ID, *headers], json.dumps(document, indent=1).encode())


def error(status: int, message: str, *headers: tuple[str, str]) -> Script:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": "model", "code": "a_code"}}
    return answering(body, status, *headers)


async def create(url: str) -> object:
    async with client(url) as sdk:
        completion = await sdk.chat.completions.create(**ASK, tools=[TOOL])
        return completion.to_dict(), completion._request_id


async def stream(url: str) -> object:
    async with client(url) as sdk:
        chunks = await sdk.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
        return [chunk.to_dict() async for chunk in chunks]


async def respond_streaming(url: str) -> object:
    async with client(url) as sdk:
        return [
            event.to_dict() async for event in await sdk.responses.create(model=MODEL, input="caf\xe9", stream=True)
        ]


def retrying(retries: int) -> Call:
    async def call(url: str) -> object:
        async with client(url, retries) as sdk:
            return (await sdk.chat.completions.create(**ASK)).to_dict()

    return call


class TestAnswers:
    async def test_a_completion(self) -> None:
        met = await same(answering(COMPLETION), create)
        assert isinstance(met.result, tuple)
        completion, request_id = met.result
        assert completion["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Paris"}'
        assert request_id == REQUEST_ID[1]
        (sent,) = met.sent
        assert (sent.method, sent.target) == ("POST", b"/v1/chat/completions")

    async def test_a_stream_of_chunks(self) -> None:
        met = await same(streaming(CHAT), stream)
        assert isinstance(met.result, list)
        assert len(met.result) == len(CHAT) - 1
        assert met.result[-1]["usage"] == COMPLETION["usage"]

    async def test_a_stream_gathered_into_a_completion(self) -> None:
        async def call(url: str) -> object:
            async with client(url) as sdk, sdk.chat.completions.stream(**ASK) as stream:
                async for _ in stream:
                    pass
                return (await stream.get_final_completion()).to_dict()

        met = await same(streaming(CHAT), call)
        assert isinstance(met.result, dict)
        message = met.result["choices"][0]["message"]
        assert message["content"] == "I look it up \xe9."
        assert message["tool_calls"][0]["function"]["arguments"] == '{"city": "Paris"}'

    async def test_responses(self) -> None:
        async def call(url: str) -> object:
            async with client(url) as sdk:
                response = await sdk.responses.create(model=MODEL, input="caf\xe9")
                return response.to_dict(), response.output_text, response._request_id

        met = await same(answering(RESPONSE), call)
        assert isinstance(met.result, tuple)
        assert met.result[1:] == ("18 degrees \xe9", REQUEST_ID[1])

    async def test_a_stream_of_responses(self) -> None:
        met = await same(streaming(RESPONSES), respond_streaming)
        assert isinstance(met.result, list)
        assert [event["type"] for event in met.result][-2:] == ["response.an_event_of_the_future", "response.completed"]

    @pytest.mark.parametrize("size", [1, 11])
    async def test_events_split_anywhere(self, size: int) -> None:
        wire = b"".join(CHAT)
        met = await same(streaming([wire[i : i + size] for i in range(0, len(wire), size)]), stream)
        assert isinstance(met.result, list)
        assert len(met.result) == len(CHAT) - 1

    async def test_names_with_slashes_stay_quoted(self) -> None:
        async def call(url: str) -> object:
            async with client(url) as sdk:
                return (await sdk.models.retrieve("org/model:1")).to_dict()

        met = await same(answering({"id": "org/model:1", "object": "model", "created": 1, "owned_by": "org"}), call)
        assert met.sent[0].target.startswith(b"/v1/models/org%2Fmodel")

    async def test_binary_answers(self) -> None:
        audio = bytes(range(256)) * 64

        async def call(url: str) -> object:
            async with client(url) as sdk:
                return (await sdk.audio.speech.create(model="tts", voice="alloy", input="hello")).content

        met = await same(respond(200, [("Content-Type", "audio/mpeg")], audio), call)
        assert met.result == audio

    async def test_an_upload_arrives_as_it_was_sent(self) -> None:
        """Multipart: the boundary is the client's own, new for each call, so this one is not compared with another."""
        content = bytes(range(256)) * 2048
        answer = {"id": "file-1", "object": "file", "bytes": len(content), "created_at": 1, "filename": "a.jsonl",
                  "purpose": "batch", "status": "processed"}  # fmt: skip
        async with ScriptedUpstream(answering(answer)) as upstream, relaying(upstream) as serving:
            async with client(serving.address.url) as sdk:
                assert (await sdk.files.create(file=("a.jsonl", content), purpose="batch")).id == "file-1"
            (request,) = upstream.requests
        kind = request.header("content-type") or b""
        boundary = kind.partition(b"boundary=")[2]
        parts = bytes(request.arrived).split(b"--" + boundary)
        assert len(parts) == 4
        assert any(part.endswith(b"\r\n\r\n" + content + b"\r\n") for part in parts)


ERRORS = [
    (400, "context_length_exceeded", openai.BadRequestError),
    (401, "Incorrect API key provided", openai.AuthenticationError),
    (403, "no", openai.PermissionDeniedError),
    (404, "The model does not exist", openai.NotFoundError),
    (422, "cannot", openai.UnprocessableEntityError),
    (429, "Rate limit reached", openai.RateLimitError),
    (500, "The server had an error", openai.InternalServerError),
    (503, "Overloaded", openai.InternalServerError),
]


class TestErrors:
    @pytest.mark.parametrize(("status", "message", "expected"), ERRORS)
    @pytest.mark.parametrize("call", [create, stream, respond_streaming])
    async def test_an_error_of_the_provider(
        self, status: int, message: str, expected: type[Exception], call: Call
    ) -> None:
        met = await same(error(status, message, ("retry-after", "7"), ("x-ratelimit-remaining-tokens", "0")), call)
        assert message in met.failure.message
        assert met.failure.kind == f"openai.{expected.__name__}"
        assert met.failure.request_id == REQUEST_ID[1]

    async def test_an_error_in_mid_stream_of_a_completion(self) -> None:
        bad = sse(json.dumps({"error": {"message": "The server had an error", "type": "server_error", "code": None}}))
        met = await same(streaming([*CHAT[:3], bad]), stream)
        assert met.failure.kind == "openai.APIError"
        assert met.failure.message == "The server had an error"

    async def test_an_error_in_mid_stream_of_a_response(self) -> None:
        bad = named("error", 3, code="server_error", message="The server had an error", param=None)
        met = await same(streaming([*RESPONSES[:2], bad]), respond_streaming)
        assert isinstance(met.result, (list, Failure))

    @pytest.mark.parametrize("count", [0, 1, 4])
    async def test_a_stream_that_breaks(self, count: int) -> None:
        met = await same(streaming(CHAT[:count], end=False), stream)
        assert isinstance(met.result, Failure)

    async def test_an_event_cut_in_two_by_a_break(self) -> None:
        @serve_forever
        async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
            await request.body()
            await conn.send_head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
            await conn.send(chunk_bytes(CHAT[0])[:50])
            conn.close()

        assert isinstance((await same(script, stream)).result, Failure)


class TestRetries:
    @pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
    async def test_what_is_retried_is_retried_as_often(self, status: int) -> None:
        met = await same(error(status, "again", ("retry-after-ms", "1")), retrying(2))
        counts = [dict(sent.headers)[b"x-stainless-retry-count"] for sent in met.sent]
        assert counts == [b"0", b"1", b"2"]

    @pytest.mark.parametrize(("status", "advice", "tries"), [(400, "true", 3), (503, "false", 1), (400, None, 1)])
    async def test_the_providers_advice_is_heard(self, status: int, advice: str | None, tries: int) -> None:
        headers = [("retry-after-ms", "1"), *([("x-should-retry", advice)] if advice else [])]
        assert len((await same(error(status, "m", *headers), retrying(2))).sent) == tries


class TestLeaving:
    async def test_a_client_that_stops_reading_ends_the_upstream(self) -> None:
        points = Rendezvous()

        @serve_forever
        async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
            await request.body()
            await conn.send_head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
            await conn.chunk(CHAT[0] + CHAT[1])
            await conn.closed()
            points.reach("left")

        async with ScriptedUpstream(script) as upstream, relaying(upstream) as serving:
            async with client(serving.address.url) as sdk:
                chunks = await sdk.chat.completions.create(**ASK, stream=True)
                async for _ in chunks:
                    break
                await chunks.close()
                await points.wait("left")
            assert await serving.records.outcome() is Outcome.CALLER_LEFT


@pytest.fixture
def refusing() -> Iterator[str]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


class TestTheGatewaysOwnErrors:
    @pytest.mark.parametrize("call", [create, stream, respond_streaming])
    async def test_an_unreachable_upstream_is_an_error_with_our_request_id(self, refusing: str, call: Call) -> None:
        async with relaying(refusing) as serving:
            with pytest.raises(openai.InternalServerError) as caught:
                await call(serving.address.url)
            (record,) = await serving.records.ended()
        assert caught.value.status_code == 502
        assert record.exchange is not None
        assert caught.value.request_id == record.exchange.id
        assert caught.value.code == "upstream_refused"
        assert caught.value.type == "server_error"
        assert "refused the connection" in str(caught.value)
        assert "s3cret" not in str(caught.value)

    async def test_it_is_retried_like_a_providers(self, refusing: str) -> None:
        async with relaying(refusing) as serving:
            with pytest.raises(openai.InternalServerError):
                await retrying(2)(serving.address.url)
            assert len(await serving.records.ended(3)) == 3

    async def test_a_body_over_the_limit_is_not_retried(self) -> None:
        async with ScriptedUpstream() as upstream, relaying(upstream, body_limit=10) as serving:
            with pytest.raises(openai.APIStatusError) as caught:
                await retrying(2)(serving.address.url)
            assert (caught.value.status_code, caught.value.code) == (413, "body_too_large")
            assert len(await serving.records.ended(1)) == 1
            assert upstream.requests == []

"""The demo provider, asked by the official SDKs and by raw requests: what it answers parses, and says what it is."""

import asyncio
import contextlib
import json
import stat
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from aiohttp import web

from fiedler_proxy.upstream import parse_upstream
from kgb_gateway.demo import create_demo_app, demo_upstream
from kgb_gateway.demo.reply import pieces
from kgb_gateway.demo.sample import Tool, pick_tool, sample, wishes_tool

IS_DEMO = "built-in demo provider, not a model"
MODEL = "claude-opus-5"
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
WISH = "Please use a tool to tell me about Oslo."


@contextlib.asynccontextmanager
async def served(pace: float = 0) -> AsyncIterator[str]:
    runner = web.AppRunner(create_demo_app(pace), access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
async def base() -> AsyncIterator[str]:
    async with served() as url:
        yield url


@pytest.fixture
async def claude(base: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=base, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def gpt(base: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def web_client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def anthropic_tool(name: str = "get_weather") -> Any:
    return {"name": name, "description": "", "input_schema": WEATHER}


def chat_tool() -> Any:
    return {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}


def responses_tool() -> Any:
    return {"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": False}


class TestMessages:
    async def test_one_document_is_text_first(self, claude: anthropic.AsyncAnthropic) -> None:
        message = await claude.messages.create(
            model="any-name", max_tokens=500, messages=said("Count my seven words, if you can")
        )
        block = message.content[0]
        assert isinstance(block, anthropic.types.TextBlock)
        assert IS_DEMO in block.text
        assert "Count my seven words, if you can" in block.text
        assert (message.model, message.stop_reason, message.role) == ("any-name", "end_turn", "assistant")
        assert message.usage.input_tokens > 0
        assert message.usage.output_tokens == len(pieces(block.text))
        assert message._request_id is not None
        assert message._request_id.startswith("req_demo")

    async def test_one_document_thinks_on_request(self, claude: anthropic.AsyncAnthropic) -> None:
        message = await claude.messages.create(
            model=MODEL, max_tokens=2000, messages=said("Hi"), thinking={"type": "enabled", "budget_tokens": 1024}
        )
        thinking = message.content[0]
        assert isinstance(thinking, anthropic.types.ThinkingBlock)
        assert thinking.thinking
        assert thinking.signature
        assert message.usage.output_tokens_details is not None
        assert message.usage.output_tokens_details.thinking_tokens == len(pieces(thinking.thinking))

    async def test_stream_has_thinking_text_and_usage(self, claude: anthropic.AsyncAnthropic) -> None:
        async with claude.messages.stream(model=MODEL, max_tokens=500, messages=said("Hello there")) as stream:
            kinds = [event.type async for event in stream]
            message = await stream.get_final_message()
        assert kinds[0] == "message_start"
        assert kinds[-1] == "message_stop"
        assert {"thinking", "signature", "text", "content_block_stop", "message_delta"} <= set(kinds)
        thinking, text = message.content
        assert isinstance(thinking, anthropic.types.ThinkingBlock)
        assert thinking.signature
        assert isinstance(text, anthropic.types.TextBlock)
        assert IS_DEMO in text.text
        assert message.stop_reason == "end_turn"
        assert message.usage.output_tokens == len(pieces(thinking.thinking)) + len(pieces(text.text))

    async def test_stream_without_thinking_when_disabled(self, claude: anthropic.AsyncAnthropic) -> None:
        async with claude.messages.stream(
            model=MODEL, max_tokens=500, messages=said("Hello"), thinking={"type": "disabled"}
        ) as stream:
            message = await stream.get_final_message()
        assert [block.type for block in message.content] == ["text"]

    async def test_tool_loop_ends(self, claude: anthropic.AsyncAnthropic) -> None:
        history = said(WISH)
        async with claude.messages.stream(
            model=MODEL, max_tokens=900, messages=history, tools=[anthropic_tool()]
        ) as stream:
            first = await stream.get_final_message()
        assert first.stop_reason == "tool_use"
        call = first.content[-1]
        assert isinstance(call, anthropic.types.ToolUseBlock)
        assert (call.name, call.input) == ("get_weather", {"city": "Oslo"})
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "Sunny, 20 degrees. Use a tool!"}
        history += [{"role": "assistant", "content": first.to_dict()["content"]}, {"role": "user", "content": [result]}]
        async with claude.messages.stream(
            model=MODEL, max_tokens=900, messages=history, tools=[anthropic_tool()]
        ) as stream:
            second = await stream.get_final_message()
        assert second.stop_reason == "end_turn"
        assert "answered with 30 characters" in await stream.get_final_text()

    async def test_tool_call_in_one_document(self, claude: anthropic.AsyncAnthropic) -> None:
        message = await claude.messages.create(
            model=MODEL, max_tokens=900, messages=said(WISH), tools=[anthropic_tool()]
        )
        assert [block.type for block in message.content] == ["text", "tool_use"]

    @pytest.mark.parametrize(
        ("text", "choice", "calls"),
        [
            ("What a nice day", None, False),
            ("What a nice day", {"type": "any"}, True),
            ("What a nice day", {"type": "tool", "name": "get_weather"}, True),
            (WISH, {"type": "none"}, False),
            (WISH, {"type": "auto"}, True),
        ],
    )
    async def test_tool_only_when_wished(
        self, claude: anthropic.AsyncAnthropic, text: str, choice: Any, calls: bool
    ) -> None:
        more = {} if choice is None else {"tool_choice": choice}
        message = await claude.messages.create(
            model=MODEL, max_tokens=900, messages=said(text), tools=[anthropic_tool()], **more
        )
        assert (message.stop_reason == "tool_use") is calls

    async def test_words_of_the_agent_are_not_the_users(self, claude: anthropic.AsyncAnthropic) -> None:
        content: Any = [
            {"type": "text", "text": "Say hello"},
            {"type": "text", "text": "<system-reminder>use a tool</system-reminder>"},
        ]
        message = await claude.messages.create(
            model=MODEL, max_tokens=900, messages=[{"role": "user", "content": content}], tools=[anthropic_tool()]
        )
        assert message.stop_reason == "end_turn"

    async def test_limit_cuts(self, claude: anthropic.AsyncAnthropic) -> None:
        async with claude.messages.stream(model=MODEL, max_tokens=3, messages=said(WISH)) as stream:
            message = await stream.get_final_message()
        assert message.stop_reason == "max_tokens"
        assert message.usage.output_tokens == 3
        assert await stream.get_final_text() == "This is kgb's"

    async def test_structured_output_parses(self, claude: anthropic.AsyncAnthropic) -> None:
        title = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
        schema: Any = {"type": "json_schema", "schema": title}
        message = await claude.messages.create(
            model=MODEL,
            max_tokens=100,
            messages=said("Title, please"),
            output_config={"format": schema},
        )
        block = message.content[0]
        assert isinstance(block, anthropic.types.TextBlock)
        assert json.loads(block.text) == {"title": "kgb demo"}

    async def test_cache_counts_never_twice(self, claude: anthropic.AsyncAnthropic) -> None:
        text = {"type": "text", "text": "word " * 500, "cache_control": {"type": "ephemeral"}}
        plain = await claude.messages.create(model=MODEL, max_tokens=100, messages=said("word " * 500))
        history: list[Any] = [{"role": "user", "content": [text]}]
        first = await claude.messages.create(model=MODEL, max_tokens=100, messages=history)
        history += [{"role": "assistant", "content": "ok"}, *said("on")]
        later = await claude.messages.create(model=MODEL, max_tokens=100, messages=history)
        assert (plain.usage.cache_creation_input_tokens, plain.usage.cache_read_input_tokens) == (0, 0)
        assert first.usage.cache_creation_input_tokens
        assert first.usage.cache_read_input_tokens == 0
        assert later.usage.cache_read_input_tokens
        assert first.usage.cache_creation is not None
        assert first.usage.cache_creation.ephemeral_5m_input_tokens == first.usage.cache_creation_input_tokens
        assert (
            abs(sum((first.usage.input_tokens, first.usage.cache_creation_input_tokens)) - plain.usage.input_tokens)
            < 50
        )

    async def test_count_tokens_and_models(self, claude: anthropic.AsyncAnthropic) -> None:
        assert (await claude.messages.count_tokens(model=MODEL, messages=said("Hi"))).input_tokens > 0
        page = await claude.models.list(limit=1000)
        assert page.data[0].type == "model"
        assert page.has_more is False
        assert (await claude.models.retrieve("claude-of-tomorrow")).id == "claude-of-tomorrow"

    async def test_events_on_the_wire(self, base: str, web_client: aiohttp.ClientSession) -> None:
        body = {"model": "m", "max_tokens": 900, "messages": said(WISH), "tools": [anthropic_tool()], "stream": True}
        async with web_client.post(f"{base}/v1/messages?beta=true", json=body) as answer:
            text = await answer.text()
            assert answer.status == 200
            assert answer.content_type == "text/event-stream"
            assert answer.headers["request-id"].startswith("req_demo")
            assert "anthropic-ratelimit-requests-remaining" in answer.headers
        events = [dict(line.split(": ", 1) for line in event.splitlines()) for event in text.split("\n\n") if event]
        payloads = [json.loads(event["data"]) for event in events]
        assert [event["event"] for event in events] == [payload["type"] for payload in payloads]
        assert "ping" in {event["event"] for event in events}
        deltas = [p["delta"] for p in payloads if p["type"] == "content_block_delta"]
        assert {d["type"] for d in deltas} == {"thinking_delta", "signature_delta", "text_delta", "input_json_delta"}
        final = next(p for p in payloads if p["type"] == "message_delta")["usage"]
        start = payloads[0]["message"]["usage"]
        assert final["output_tokens"] > start["output_tokens"]
        assert {"input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"} <= set(final)

    async def test_errors(self, claude: anthropic.AsyncAnthropic, base: str, web_client: aiohttp.ClientSession) -> None:
        with pytest.raises(anthropic.BadRequestError, match="messages: at least one") as raised:
            await claude.messages.create(model=MODEL, max_tokens=9, messages=[])
        assert raised.value.request_id is not None
        assert raised.value.request_id.startswith("req_demo")
        with pytest.raises(anthropic.NotFoundError):
            await claude.messages.batches.list()
        for body, word in ((b"{oops", "not valid JSON"), (b"[1]", "object"), (b"[" * 9999, "JSON"), (b"\xff", "JSON")):
            async with web_client.post(f"{base}/v1/messages", data=body) as answer:
                assert answer.status == 400
                document = await answer.json()
                assert document["type"] == "error"
                assert document["error"]["type"] == "invalid_request_error"
                assert word in document["error"]["message"]
                assert document["request_id"] == answer.headers["request-id"]
        for missing in ("model", "messages", "max_tokens"):
            full = {"model": "m", "messages": said("Hi"), "max_tokens": 9}
            del full[missing]
            async with web_client.post(f"{base}/v1/messages", json=full) as answer:
                assert answer.status == 400
                assert (await answer.json())["error"]["message"] == f"{missing}: Field required"


class TestChat:
    async def test_one_document(self, gpt: openai.AsyncOpenAI) -> None:
        answer = await gpt.chat.completions.create(model="any", messages=said("Hello"))
        assert IS_DEMO in (answer.choices[0].message.content or "")
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        assert answer._request_id is not None

    @pytest.mark.parametrize("asked", [True, False])
    async def test_stream_and_usage(self, gpt: openai.AsyncOpenAI, asked: bool) -> None:
        options: Any = {"stream_options": {"include_usage": True}} if asked else {}
        stream = await gpt.chat.completions.create(model="any", messages=said("Hello"), stream=True, **options)
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert IS_DEMO in text
        assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [asked]
        assert [not chunk.choices for chunk in chunks] == [False] * (len(chunks) - 1) + [asked]
        finishes = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        assert finishes[-1] == "stop"
        assert set(finishes[:-1]) == {None}

    async def test_tool_loop_ends(self, gpt: openai.AsyncOpenAI) -> None:
        history = said(WISH)
        async with gpt.chat.completions.stream(model="any", messages=history, tools=[chat_tool()]) as stream:
            first = (await stream.get_final_completion()).choices[0]
        assert first.finish_reason == "tool_calls"
        assert first.message.tool_calls
        call = first.message.tool_calls[0]
        assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo"})
        message = {
            "role": "assistant",
            "content": first.message.content,
            "tool_calls": [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": call.function.arguments},
                }
            ],
        }
        history += [message, {"role": "tool", "tool_call_id": call.id, "content": "Sunny"}]
        second = await gpt.chat.completions.create(model="any", messages=history, tools=[chat_tool()])
        assert second.choices[0].finish_reason == "stop"
        assert "answered with 5 characters" in (second.choices[0].message.content or "")

    async def test_limit_forced_tool_and_format(self, gpt: openai.AsyncOpenAI) -> None:
        cut = await gpt.chat.completions.create(model="any", messages=said("Hello"), max_completion_tokens=2)
        assert (cut.choices[0].finish_reason, cut.choices[0].message.content) == ("length", "This is")
        forced = await gpt.chat.completions.create(
            model="any", messages=said("Hello"), tools=[chat_tool()], tool_choice="required"
        )
        assert forced.choices[0].finish_reason == "tool_calls"
        wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": WEATHER}}
        shaped = await gpt.chat.completions.create(model="any", messages=said("Hello"), response_format=wanted)
        assert json.loads(shaped.choices[0].message.content or "") == {"city": "Oslo"}

    async def test_ends_with_done(self, base: str, web_client: aiohttp.ClientSession) -> None:
        body = {"model": "m", "messages": said("Hi"), "stream": True}
        async with web_client.post(f"{base}/v1/chat/completions", json=body) as answer:
            text = await answer.text()
            assert answer.headers["x-request-id"].startswith("req_demo")
        assert text.endswith("data: [DONE]\n\n")
        assert "event:" not in text

    async def test_models_and_errors(self, gpt: openai.AsyncOpenAI) -> None:
        assert {model.object async for model in gpt.models.list()} == {"model"}
        assert (await gpt.models.retrieve("gpt-9")).id == "gpt-9"
        with pytest.raises(openai.BadRequestError) as raised:
            await gpt.chat.completions.create(model="any", messages=[])
        assert raised.value.param == "messages"
        assert raised.value.request_id is not None
        with pytest.raises(openai.NotFoundError, match="Unknown path /v1/embeddings"):
            await gpt.embeddings.create(model="any", input="x")


class TestResponses:
    async def test_one_document(self, gpt: openai.AsyncOpenAI) -> None:
        response = await gpt.responses.create(model="any", input="Hello")
        assert IS_DEMO in response.output_text
        assert [item.type for item in response.output] == ["message"]
        assert response.status == "completed"
        assert response.usage is not None
        assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens

    async def test_stream(self, gpt: openai.AsyncOpenAI) -> None:
        stream = await gpt.responses.create(
            model="any",
            input="Hello",
            stream=True,
            include=["reasoning.encrypted_content"],
            reasoning={"summary": "auto"},
        )
        events = [event async for event in stream]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        kinds = [event.type for event in events]
        assert kinds[:2] == ["response.created", "response.in_progress"]
        assert {
            "response.reasoning_summary_text.delta",
            "response.content_part.added",
            "response.output_item.done",
        } <= set(kinds)
        last = events[-1]
        assert last.type == "response.completed"
        deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert IS_DEMO in deltas
        assert deltas == last.response.output_text
        done = [event.item for event in events if event.type == "response.output_item.done"]
        assert done == last.response.output
        reasoning = done[0]
        assert reasoning.type == "reasoning"
        assert reasoning.encrypted_content
        assert last.response.usage is not None
        assert last.response.usage.output_tokens_details.reasoning_tokens > 0

    async def test_tool_loop_ends(self, gpt: openai.AsyncOpenAI) -> None:
        history: Any = [{"role": "user", "content": [{"type": "input_text", "text": WISH}]}]
        async with gpt.responses.stream(model="any", input=history, tools=[responses_tool()]) as stream:
            kinds = [event.type async for event in stream]
            first = await stream.get_final_response()
        assert "response.function_call_arguments.delta" in kinds
        call = first.output[-1]
        assert call.type == "function_call"
        assert json.loads(call.arguments) == {"city": "Oslo"}
        history += [item.to_dict() for item in first.output]
        history.append({"type": "function_call_output", "call_id": call.call_id, "output": "Sunny"})
        second = await gpt.responses.create(model="any", input=history, tools=[responses_tool()])
        assert "answered with 5 characters" in second.output_text
        assert [item.type for item in second.output] == ["message"]

    async def test_limit_is_incomplete(self, gpt: openai.AsyncOpenAI) -> None:
        stream = await gpt.responses.create(model="any", input="Hello", stream=True, max_output_tokens=2)
        last = [event async for event in stream][-1]
        assert last.type == "response.incomplete"
        assert last.response.incomplete_details is not None
        assert last.response.incomplete_details.reason == "max_output_tokens"
        assert last.response.output_text == "This is"

    async def test_websocket_is_refused_at_once(self, base: str, web_client: aiohttp.ClientSession) -> None:
        with pytest.raises(aiohttp.WSServerHandshakeError) as raised:
            await web_client.ws_connect(f"{base}/v1/responses")
        assert raised.value.status == 426


class TestHttp:
    async def test_root(self, base: str, web_client: aiohttp.ClientSession) -> None:
        async with web_client.head(f"{base}/") as answer:
            assert answer.status == 200
        async with web_client.get(f"{base}/") as answer:
            assert "not a model" in await answer.text()

    async def test_models_are_told_apart_by_header(self, base: str, web_client: aiohttp.ClientSession) -> None:
        async with web_client.get(f"{base}/v1/models") as answer:
            assert (await answer.json())["object"] == "list"
        async with web_client.get(f"{base}/v1/models", headers={"anthropic-version": "2026-10-21"}) as answer:
            assert (await answer.json())["has_more"] is False

    @pytest.mark.parametrize(
        ("method", "path", "status", "kind"),
        [
            ("GET", "/v1/messages", 405, "anthropic"),
            ("GET", "/v1/messages/batches", 404, "anthropic"),
            ("DELETE", "/v1/chat/completions", 405, "openai"),
            ("POST", "/v1/nothing", 404, "openai"),
            ("PATCH", "/", 405, "openai"),
        ],
    )
    async def test_wrong_path_or_method(
        self, base: str, web_client: aiohttp.ClientSession, method: str, path: str, status: int, kind: str
    ) -> None:
        async with web_client.request(method, f"{base}{path}") as answer:
            assert answer.status == status
            document = await answer.json()
        assert ("type" in document) is (kind == "anthropic")
        assert path in document["error"]["message"]

    @pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions", "/v1/responses"])
    @pytest.mark.parametrize(
        "odd",
        [
            {"messages": [{"role": "user", "content": 7}]},
            {"messages": [{"role": "user", "content": [None, {"type": "text"}]}, {"role": "system", "content": "x"}]},
            {"input": [{"role": "user", "content": [3]}, 4], "include": 5, "text": 3, "reasoning": 1},
            {
                "tools": [1, {"type": "function", "function": 3, "input_schema": {"minItems": "x", "type": "array"}}],
                "tool_choice": {},
            },
            {
                "tools": [{"type": "function", "name": "x", "parameters": 3, "input_schema": {"$ref": "#"}}],
                "tool_choice": {"type": "any"},
            },
            {"stream_options": 3, "response_format": 4, "output_config": 5, "thinking": 6},
        ],
    )
    async def test_odd_bodies_get_an_answer(
        self, base: str, web_client: aiohttp.ClientSession, path: str, odd: dict[str, Any]
    ) -> None:
        for streams in (False, True):
            body = {"model": "m", "max_tokens": 500, "messages": said(WISH), "input": WISH, "stream": streams, **odd}
            async with web_client.post(base + path, json=body) as answer:
                assert answer.status == 200
                assert await answer.read()

    async def test_a_caller_that_leaves_stops_nothing(self, web_client: aiohttp.ClientSession) -> None:
        body = {"model": "m", "max_tokens": 900, "messages": said("Hi"), "stream": True}
        async with served(pace=0.01) as base:
            async with web_client.post(f"{base}/v1/messages", json=body) as answer:
                assert await answer.content.readline() == b"event: message_start\n"
                answer.close()
            async with web_client.post(f"{base}/v1/messages", json=body) as answer:
                assert (await answer.text()).endswith('data: {"type":"message_stop"}\n\n')


class TestPace:
    async def test_words_leave_one_by_one(
        self, web_client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each pause is a gate: what was read when the gate was reached is what had left before it."""
        gates: asyncio.Queue[asyncio.Event] = asyncio.Queue()
        seen: list[float] = []

        async def gate(seconds: float) -> None:
            seen.append(seconds)
            event = asyncio.Event()
            gates.put_nowait(event)
            await event.wait()

        monkeypatch.setattr("kgb_gateway.demo.provider.asyncio", _Clock(gate))
        body = {"model": "m", "messages": said("Hi"), "stream": True, "max_tokens": 2}
        async with served(pace=0.25) as base:
            asking = asyncio.create_task(web_client.post(f"{base}/v1/chat/completions", json=body))
            (await gates.get()).set()
            answer = await asking
            words: list[Any] = []
            while not words or words[-1]["choices"][0]["finish_reason"] is None:
                line = await answer.content.readline()
                if not line.strip():
                    continue
                words.append(json.loads(line.removeprefix(b"data: ")))
                if words[-1]["choices"][0]["finish_reason"] is None:
                    (await gates.get()).set()
            await answer.read()
        assert [word["choices"][0]["delta"].get("content") for word in words] == ["", "This", " is", None]
        assert set(seen) == {0.25}

    @pytest.mark.parametrize("pace", [-1, float("nan")])
    def test_impossible_pace(self, pace: float) -> None:
        with pytest.raises(ValueError, match="pace"):
            create_demo_app(pace)


class _Clock:
    """asyncio with another sleep."""

    def __init__(self, sleep: Any) -> None:
        self.sleep = sleep


class TestServing:
    async def test_private_unix_socket(self) -> None:
        async with demo_upstream(pace=0) as url:
            upstream = parse_upstream(url)
            path = Path(upstream.unix)
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session, session.get("http://x/") as answer:  # fmt: skip
                assert "not a model" in await answer.text()
        assert not path.parent.exists()

    async def test_path_too_long_falls_back_to_loopback(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        deep = tmp_path / ("d" * 120)
        deep.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(deep))
        async with demo_upstream(pace=0) as url, aiohttp.ClientSession() as session, session.get(f"{url}/") as answer:
            assert parse_upstream(url).host == "127.0.0.1"
            assert answer.status == 200


class TestTools:
    @pytest.mark.parametrize(
        ("text", "wishes"),
        [
            ("use a tool", True),
            ("please CALL the weather\ntool", True),
            ("Read the file setup.cfg", True),
            ("open src/main.rs", True),
            ("show me README.md please", True),
            ("Hello there. How are you?", False),
            ("I read a lot of books.", False),
            ("", False),
        ],
    )
    def test_wish(self, text: str, wishes: bool) -> None:
        assert wishes_tool(text) is wishes

    def test_picks_what_harms_nothing(self) -> None:
        def pick(said: str, *names: str, forced: str = "") -> str | None:
            tool = pick_tool(tuple(Tool(name, {}) for name in names), said, forced)
            return tool.name if tool else None

        assert pick("use a tool", "Write", "Bash", "Task", "Read", "Glob") == "Read"
        assert pick("use the Glob tool", "Write", "Read", "Glob") == "Glob"
        assert pick("read setup.cfg", "Glob", "Read") == "Read"
        assert pick("use a tool", "apply_patch", "shell") == "shell"
        assert pick("use the Write tool", "Write", "delete_file") is None
        assert pick("", "Write", "Read", forced="Write") == "Write"
        assert pick("", "Read", forced="Write") is None

    def test_sample_follows_the_schema(self) -> None:
        schema = {
            "type": "object",
            "$defs": {"unit": {"enum": ["C", "F"]}},
            "properties": {
                "file_path": {"type": "string"},
                "unit": {"$ref": "#/$defs/unit"},
                "command": {"type": "array", "items": {"type": "string"}},
                "lines": {"type": ["null", "integer"], "minimum": 5},
                "flag": {"type": "boolean"},
                "either": {"anyOf": [{"type": "null"}, {"type": "string"}]},
                "fixed": {"const": 3},
                "pair": {"type": "array", "items": {"type": "number"}, "minItems": 2},
                "optional": {"type": "string"},
            },
            "required": ["file_path", "unit", "command", "lines", "flag", "either", "fixed", "pair"],
        }
        assert sample(schema, "Please read docs/guide.rst for me") == {
            "file_path": "docs/guide.rst",
            "unit": "C",
            "command": ["ls"],
            "lines": 5,
            "flag": False,
            "either": None,
            "fixed": 3,
            "pair": [1, 1],
        }

    def test_sample_of_a_schema_without_end(self) -> None:
        both = {"type": "object", "properties": {"a": {"$ref": "#"}, "b": {"$ref": "#"}}, "required": ["a", "b"]}
        assert isinstance(sample(both), dict)

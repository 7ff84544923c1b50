"""What agents send, through a gateway, told apart: turns, retries, twins, forks, sub-agents, summaries, utilities."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import pytest
from aiohttp import WSMsgType, web

from fiedler_proxy.testing import start_app
from fiedler_proxy.testing.connection import ReceivedRequest, UpstreamConnection
from kgb_gateway import tail
from tests.recorded import SSE, Address, Recorded, message, model
from tests.spools import assistant, events, user

SESSION = "11111111-2222-3333-4444-555555555555"
CLAUDE = (("user-agent", "claude-cli/2.0.1 (external, cli)"), ("x-claude-code-session-id", SESSION))
SYSTEM = [{"type": "text", "text": "You are an agent."}]
PLAIN = [(b"Content-Type", b"application/json")]


@pytest.fixture(autouse=True)
def near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(tail, "SHARED_MEMORY", tmp_path / "shm")


@pytest.fixture
def home(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path / "data")


@attrs.define
class Provider:
    """Says ``re: `` and the last text; the first time it is asked, a text may tell it to be overloaded, or to break the stream."""

    asked: Counter[str] = attrs.field(factory=Counter)

    async def __call__(self, request: ReceivedRequest, body: dict[str, Any], conn: UpstreamConnection) -> None:
        if request.target.startswith(b"/v1/messages/count_tokens"):
            await conn.send_response(200, PLAIN, b'{"input_tokens": 42}')
            return
        text = body["messages"][-1]["content"][-1]["text"]
        self.asked[text] += 1
        reply = events(f"re: {text}")
        if "overloaded" in text and self.asked[text] == 1:
            error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
            await conn.send_response(529, PLAIN, json.dumps(error).encode())
        elif not body.get("stream"):
            await conn.send_response(200, PLAIN, message(f"re: {text}"))
        elif "breaks" in text:
            await conn.send_head(200, [SSE, (b"Transfer-Encoding", b"chunked")])
            await conn.chunk(b"".join(reply[:3]))
            conn.abort()
        else:
            await conn.send_response(200, [SSE], b"".join(reply), chunked=True)


def body(*messages: dict[str, Any], stream: bool = True, system: Any = SYSTEM, **more: Any) -> dict[str, Any]:
    """A request; ``messages`` in order."""
    told = {"model": "claude-sonnet-4-5", "max_tokens": 100, "stream": stream, "system": system}
    return {**told, "messages": list(messages), **more}


async def ask(
    gate: Address, *texts: str, headers: Any = CLAUDE, target: str = "/v1/messages?beta=true", **more: Any
) -> None:
    """One turn: ``texts`` are said in turn by the user and the model; a stream that breaks is what its caller expects."""
    messages = [assistant(text) if number % 2 else user(text) for number, text in enumerate(texts)]
    async with gate.caller() as client:
        await client.post(
            target, [("Content-Type", "application/json"), *headers], json.dumps(body(*messages, **more)).encode()
        )
        await client.read_until_close() if "breaks" in texts[-1] and more.get(
            "stream", True
        ) else await client.read_response()


def relations(home: Recorded, session: str = SESSION) -> list[tuple[str, str]]:
    """Relation and outcome of each turn of a session, as they came, but for what is none."""
    found = [(turn["relation"], turn["outcome"]) for turn in home.turns(session)]
    return [each for each in found if each[0] != "utility"]


async def test_a_day_of_claude_code(home: Recorded) -> None:
    """Turns, a retry, a broken stream and its twin, an edit, a fork, and what is no turn."""
    async with home.gateway(model(Provider())) as gate:
        await ask(gate, "hi", target="/v1/messages/count_tokens?beta=true")
        await ask(gate, "hi")
        await ask(gate, "hi", "re: hi", "overloaded?")
        await ask(gate, "hi", "re: hi", "overloaded?")
        so_far = ("hi", "re: hi", "overloaded?", "re: overloaded?")
        await ask(gate, *so_far, "it breaks")
        await ask(gate, *so_far, "it breaks", stream=False)
        await ask(gate, *so_far, "changed my mind")
        await ask(gate, "hi", "re: hi", "quite another way")
    assert relations(home) == [
        ("first", "completed"),
        ("appended", "completed"),
        ("retry", "completed"),
        ("appended", "upstream_broke"),
        ("twin", "completed"),
        ("edited", "completed"),
        ("fork", "completed"),
    ]
    (session,) = home.told("list")
    assert (session["agent"], session["turns"]) == ("claude-code", 7)
    exchanges = home.told("list", "--exchanges")
    assert len(exchanges) == 8
    assert [row["relation"] for row in exchanges if "count_tokens" in row["target"]] == ["utility"]
    broken = home.turns(SESSION)[3]
    assert broken["partial"]
    assert "re: it" in json.dumps(broken["replies"])
    assert home.dewey("show", SESSION).count("re: overloaded?") == 1, (
        "no message is shown in every turn that repeats it"
    )


async def test_sub_agents_and_a_compaction(home: Recorded) -> None:
    agent = (*CLAUDE, ("x-claude-code-agent-id", "agent-7"))
    summary = (
        "This session is being continued from a previous conversation that ran out of context. Summary: all went well."
    )
    async with home.gateway(model(Provider())) as gate:
        await ask(gate, "hi")
        await ask(gate, "look for wombats", headers=agent, system=[{"type": "text", "text": "You search."}])
        await ask(
            gate,
            "look for wombats",
            "re: look for wombats",
            "and more",
            headers=agent,
            system=[{"type": "text", "text": "You search."}],
        )
        await ask(gate, "hi", "re: hi", "go on")
        await ask(gate, summary)
        await ask(gate, summary, f"re: {summary}", "go on from there")
    found = [(turn["relation"], turn.get("agent_id") or "") for turn in home.turns(SESSION)]
    assert sorted(found) == sorted(
        [
            ("first", ""),
            ("sub_agent", "agent-7"),
            ("appended", "agent-7"),
            ("appended", ""),
            ("compaction", ""),
            ("appended", ""),
        ]
    )


@pytest.mark.parametrize(
    ("headers", "agent", "session"),
    [
        ((("user-agent", "codex_cli_rs/0.50.0"), ("session_id", "s-codex")), "codex", "s-codex"),
        ((("user-agent", "opencode/1.0"), ("x-session-affinity", "s-open")), "opencode", "s-open"),
        ((("user-agent", "curl/8"),), "", ""),
    ],
    ids=["codex", "opencode", "nobody says"],
)
async def test_other_agents(home: Recorded, headers: Any, agent: str, session: str) -> None:
    async with home.gateway(model(Provider())) as gate:
        await ask(gate, "something else", headers=())
        await ask(gate, "hi", headers=headers)
        await ask(gate, "hi", "re: hi", "go on", headers=headers)
    found = [row for row in home.told("list") if row["turns"] == 2]
    assert len(found) == 1
    assert found[0]["agent"] == agent
    assert not session or session in found[0]["key"]
    assert [relation for relation, _ in relations(home, session or found[0]["key"])] == ["first", "appended"]


def response(number: int, text: str, **more: Any) -> dict[str, Any]:
    said = {
        "type": "message",
        "id": f"msg_{number}",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text}],
    }
    usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    return {
        "id": f"resp_{number}",
        "object": "response",
        "model": "gpt-5",
        "status": "completed",
        "output": [said],
        "usage": usage,
        **more,
    }


async def test_responses_that_name_the_one_before(home: Recorded) -> None:
    """Of a request with ``previous_response_id`` only what is new is in its body."""
    count = iter(range(1, 10))

    async def answer(request: ReceivedRequest, body: dict[str, Any], conn: UpstreamConnection) -> None:
        await conn.send_response(200, PLAIN, json.dumps(response(next(count), f"re: {body['input']}")).encode())

    async with home.gateway(model(answer)) as gate:
        for said in (
            {"input": "hi"},
            {"input": "go on", "previous_response_id": "resp_1"},
            {"input": "more", "previous_response_id": "resp_2"},
        ):
            status, _ = await gate.post("/v1/responses", {"model": "gpt-5", **said}, [("session_id", "s-resp")])
            assert status == 200
    assert [relation for relation, _ in relations(home, "s-resp")] == ["first", "appended", "appended"]
    shown = home.dewey("show", "s-resp")
    assert [shown.count(text) for text in ("re: hi", "re: go on", "re: more")] == [1, 1, 1]


async def test_a_websocket_of_responses_is_a_turn_each(home: Recorded) -> None:
    """Several turns on one socket, the last of which its caller does not wait for."""

    async def provider(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        number = 0
        async for said in socket:
            if said.type is not WSMsgType.TEXT:
                break
            asked, number = json.loads(said.data), number + 1
            text = f"re: {asked['input']}"
            whole = response(number, text)
            begun = {**whole, "status": "in_progress", "output": []}
            await socket.send_json({"type": "response.created", "response": begun})
            item = {**whole["output"][0], "content": []}
            await socket.send_json({"type": "response.output_item.added", "output_index": 0, "item": item})
            part = {"type": "output_text", "text": ""}
            place = {"output_index": 0, "content_index": 0, "item_id": item["id"]}
            await socket.send_json({"type": "response.content_part.added", **place, "part": part})
            await socket.send_json({"type": "response.output_text.delta", **place, "delta": text})
            if "never ends" not in text:
                await socket.send_json({"type": "response.completed", "response": whole})
        return socket

    app = web.Application()
    app.router.add_get("/v1/responses", provider)
    async with (
        start_app(app) as far,
        home.gateway(model(Provider()), upstream=f"http://{far.host}:{far.port}") as gate,
        aiohttp.ClientSession(headers={"session_id": "s-socket", "user-agent": "codex_cli_rs/0.50.0"}) as caller,
        caller.ws_connect(f"http://{gate.host}:{gate.port}/v1/responses") as socket,
    ):
        for text, last in (
            ("hi", "response.completed"),
            ("go on", "response.completed"),
            ("never ends", "response.output_text.delta"),
        ):
            before = {} if text == "hi" else {"previous_response_id": "resp_1" if text == "go on" else "resp_2"}
            await socket.send_json({"type": "response.create", "model": "gpt-5", "input": text, **before})
            while (await socket.receive_json())["type"] != last:
                pass
    *turns, connection = home.turns("s-socket")
    assert connection["relation"] == "utility"
    assert [turn["relation"] for turn in turns] == ["first", "appended", "appended"]
    assert [bool(turn.get("partial")) for turn in turns] == [False, False, True]
    shown = home.dewey("show", "s-socket")
    assert [shown.count(text) for text in ("re: hi", "re: go on", "re: never ends")] == [1, 1, 1]

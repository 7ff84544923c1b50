"""The control socket of a running gateway: what it tells, what it does, and who may open it."""

import asyncio
import contextlib
import json
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from aiohttp import web

from fiedler_proxy.control import Control
from fiedler_proxy.lifecycle import GATEWAY
from fiedler_proxy.router import ROUTER, Router
from fiedler_proxy.testing import RawClient, ScriptedUpstream, UpstreamConnection, respond
from fiedler_proxy.testing.upstream import Script
from kgb_gateway.control_client import Instance, Nobody, Said, ask, instances
from tests.controlled import controlled

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@attrs.define(eq=False)
class Running:
    """A gateway with its control open, and a configuration file that can be written anew."""

    app: web.Application
    control: Control
    host: str
    port: int
    config: Path
    text: str
    upstreams: list[ScriptedUpstream]

    @property
    def router(self) -> Router:
        return self.app[ROUTER]

    @property
    def socket(self) -> Instance:
        (found,) = instances(self.control.directory)
        return found

    async def say(self, method: str, path: str, said: dict[str, object] | None = None) -> Said:
        (heard,) = await ask([self.socket], method, path, said)
        return heard

    async def post(self, headers: Any = (), body: bytes = b'{"model": "m"}') -> Any:
        async with RawClient(self.host, self.port) as client:
            await client.post("/v1/messages", headers, body)
            return await client.read_response()


@contextlib.asynccontextmanager
async def running(tmp_path: Path, *scripts: Script, more: str = "", name: str = "a") -> AsyncIterator[Running]:
    """Upstreams p0 (the base), p1 ...; slot ``s`` goes to the last one."""
    async with contextlib.AsyncExitStack() as stack:
        upstreams = [
            await stack.enter_async_context(ScriptedUpstream(script, ignore_errors=True)) for script in scripts
        ]
        text = f'upstream = "{upstreams[0].url}"\nport = 0\nchain = ["request_id", "auth", "fiedler"]\ninstance = "{name}"\n{more}\n'
        for number, upstream in enumerate(upstreams):
            text += f'[providers.p{number}]\nurl = "{upstream.url}"\n'
        text += f'[[slots.s]]\nname = "all"\nupstreams = ["p{len(upstreams) - 1}"]\n'
        config = tmp_path / "gateway.toml"
        config.write_text(text)
        flags = {"config": str(config), "data_dir": str(tmp_path / "data")}
        at = await stack.enter_async_context(controlled(flags))
        yield Running(at.app, at.control, at.host, at.port, config, text, upstreams)


async def test_the_socket_is_for_its_owner_alone(tmp_path: Path) -> None:
    async with running(tmp_path, respond(200)) as at:
        status = at.socket.path.stat()
        assert stat.S_ISSOCK(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert stat.S_IMODE(at.socket.path.parent.stat().st_mode) == 0o700
        assert (at.socket.name, at.socket.pid) == ("a", str(os.getpid()))
    assert instances(at.control.directory) == []


async def test_the_socket_of_a_killed_process_is_passed_over_and_swept_away(tmp_path: Path) -> None:
    dead = tmp_path / "data" / "run" / "a.1.sock"
    dead.parent.mkdir(parents=True, mode=0o700)
    process = await asyncio.create_subprocess_exec(
        "python3", "-c", f"import socket; s = socket.socket(socket.AF_UNIX); s.bind({str(dead)!r})"
    )
    await process.wait()
    with pytest.raises(Nobody):
        await ask(instances(dead.parent), "GET", "/status")
    async with running(tmp_path, respond(200)) as at:
        assert [each.pid for each in instances(at.control.directory)] == [str(os.getpid())]


async def test_a_long_path_is_no_hindrance(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    async with running(deep, respond(200)) as at:
        assert len(str(at.socket.path)) > 108
        assert (await at.say("GET", "/status")).answer["instance"] == "a"


async def test_status_shows_a_live_exchange_and_kill_cuts_it(tmp_path: Path) -> None:
    async def upstream(connection: UpstreamConnection) -> None:
        await connection.request()
        await connection.send(HEAD + b"5\r\nhello\r\n")
        await connection.stall()

    async with running(tmp_path, upstream) as at, RawClient(at.host, at.port) as client:
        await client.post("/v1/messages", [], b"{}")
        await client.read_head()
        await client.read_until(b"hello")
        said = (await at.say("GET", "/status")).answer
        (live,) = said["exchanges"]
        assert live["slot"] == "blue"
        assert (live["received"], live["path"], live["upstream"]) == (5, "/v1/messages", "default")
        refused = await at.say("POST", "/kill", {"id": "no-such"})
        assert "no live exchange" in refused.error
        assert (await at.say("POST", "/kill", {"id": live["id"]})).answer == {"killed": live["id"]}
        rest, _ = await client.read_until_close()
        assert not rest.endswith(b"0\r\n\r\n")
        assert (await at.say("GET", "/status")).answer["exchanges"] == []


async def test_a_switch_is_for_new_exchanges_and_outlives_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path, respond(200, [], b"blue"), respond(200, [], b"s")) as at:
        assert (await at.post()).body == b"blue"
        await at.say("POST", "/slots", {"action": "use", "slot": "s", "by": "test"})
        assert (await at.post()).body == b"s"
    async with running(tmp_path, respond(200, [], b"blue"), respond(200, [], b"s")) as at:
        assert (await at.post()).body == b"s"
        await at.say("POST", "/slots", {"action": "rollback", "by": "test"})
        assert (await at.post()).body == b"blue"
        said = (await at.say("GET", "/slots")).answer
        assert [each["action"] for each in said["log"]] == ["use", "rollback"]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"action": "use", "slot": "t"}, "there is no slot 't'; there are blue, s, green"),
        ({"action": "rollback"}, "there is nothing to roll back to"),
        ({"action": "canary", "slot": "blue", "share": 0.1}, "blue is the active slot"),
        ({"action": "canary", "slot": "s", "share": 1.0}, "less than 100 %"),
        ({"action": "canary", "slot": "s"}, "a canary needs a share"),
        ({"action": "jump", "slot": "s"}, "'jump' is none of use, canary, rollback"),
        ({"action": "use", "slot": 3}, "slot must be a text"),
    ],
)
async def test_what_makes_no_sense_is_refused_with_the_reason(tmp_path: Path, said: Any, why: str) -> None:
    async with running(tmp_path, respond(200)) as at:
        assert why in (await at.say("POST", "/slots", said)).error
        assert at.router.choice.log == ()


async def test_a_choice_that_cannot_be_kept_is_not_made(tmp_path: Path) -> None:
    async with running(tmp_path, respond(200)) as at:
        (tmp_path / "data" / "slots-kgb.json").mkdir(parents=True)
        assert "cannot be kept on disk" in (await at.say("POST", "/slots", {"action": "use", "slot": "s"})).error
        assert at.router.choice.active == "blue"


async def test_two_instances_make_one_change(tmp_path: Path) -> None:
    async with running(tmp_path, respond(200), name="a") as one, running(tmp_path, respond(200), name="b") as two:
        both = instances(one.control.directory)
        assert [each.name for each in both] == ["a", "b"]
        for action, identity in (("use", "1"), ("rollback", "2")):
            said = {"action": action, "slot": "s", "by": "test", "id": identity}
            assert [each.error for each in await ask(both, "POST", "/slots", said)] == ["", ""]
            assert one.router.choice == two.router.choice
        assert [each.action for each in one.router.choice.log] == ["use", "rollback"]
        await one.router.change(lambda choice: choice.using("s", "guard"))
        two.router.refresh()
        assert two.router.choice.active == "s"


async def test_reload_changes_what_it_can_and_tells_the_rest(tmp_path: Path) -> None:
    async with running(tmp_path, respond(200, [], b"first"), respond(200, [], b"second")) as at:
        assert (await at.post()).body == b"first"
        text = at.text.replace(at.upstreams[0].url, at.upstreams[1].url, 1).replace("port = 0", "port = 1")
        at.config.write_text(text)
        dry = (await at.say("POST", "/reload", {"dry_run": True})).answer
        assert any(line.startswith("upstream.url: ") for line in dry["changes"])
        assert dry["restart"] == ["port"]
        assert (await at.post()).body == b"first"
        assert (await at.say("POST", "/reload", {})).answer["changes"] == dry["changes"]
        assert (await at.post()).body == b"second"
        assert (await at.say("POST", "/reload", {})).answer["changes"] == []


async def test_what_waits_for_a_restart_is_told_until_it_comes_and_mixes_nothing_up(tmp_path: Path) -> None:
    async with running(tmp_path, respond(200)) as at:
        more = at.text.replace('"auth",', '"access_log", "auth",').replace("port = 0", "port = 0\ntimeouts.drain = 7.0")
        at.config.write_text(more.replace('"auth",', '"auth",', 1))
        for _ in range(3):
            assert (await at.say("POST", "/reload", {})).answer["restart"] == ["timeouts.drain", "links.access_log"]
            assert (await at.post([("Host", "kgb.example")])).status == 403
            assert "x-kgb-request-id" in {name.decode().lower() for name, _ in (await at.post()).headers}
        at.config.write_text(more.replace("port = 0", 'port = 0\nallowed_hosts = ["kgb.example"]'))
        await at.say("POST", "/reload", {})
        assert (await at.post([("Host", "kgb.example")])).status == 200
        at.config.write_text(at.text)
        assert (await at.say("POST", "/reload", {})).answer["restart"] == []


async def test_a_bad_file_changes_nothing_and_says_why(tmp_path: Path) -> None:
    async with running(tmp_path, respond(200, [], b"first")) as at:
        at.config.write_text(at.text.replace("instance", "instanze") + '[[slots.t]]\nupstreams = ["nobody"]\n')
        said = await at.say("POST", "/reload", {})
        assert "nothing has changed" in said.error
        assert "did you mean 'instance'?" in said.error
        assert "'nobody' is no provider" in said.error
        assert (await at.post()).body == b"first"
        assert "t" not in at.router.slots


async def test_a_reload_swaps_links_that_hold_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, respond(200)) as at:
        assert (await at.post([("Host", "kgb.example")])).status == 403
        at.config.write_text(at.text.replace("port = 0", 'port = 0\nallowed_hosts = ["kgb.example"]'))
        assert (await at.say("POST", "/reload", {})).answer["restart"] == []
        assert (await at.post([("Host", "kgb.example")])).status == 200


async def test_a_running_exchange_keeps_what_it_began_with(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def upstream(connection: UpstreamConnection) -> None:
        await connection.request()
        await connection.send(HEAD + b"3\r\none\r\n")
        await go.wait()
        await connection.send(b"3\r\ntwo\r\n0\r\n\r\n")

    async with running(tmp_path, upstream, respond(200, [], b"s")) as at, RawClient(at.host, at.port) as client:
        await client.post("/v1/messages", [], b"{}")
        await client.read_head()
        await client.read_until(b"one")
        await at.say("POST", "/slots", {"action": "use", "slot": "s"})
        at.config.write_text(at.text.replace(at.upstreams[0].url, at.upstreams[1].url))
        assert (await at.say("POST", "/reload", {})).error == ""
        assert (await at.post()).body == b"s"
        go.set()
        assert await client.read_body() == b"two"


PREFLIGHT = '[[preflight]]\npath = "/v1/messages"\nbody = \'{"model": "m"}\'\n'


async def test_a_slot_that_answers_otherwise_is_not_used(tmp_path: Path) -> None:
    right = respond(200, [("Content-Type", "application/json")], b"{}")
    wrong = respond(500, [("Content-Type", "text/html")], b"oops")
    async with running(tmp_path, right, wrong, more=PREFLIGHT) as at:
        said = await at.say("POST", "/slots", {"action": "use", "slot": "s"})
        assert "status 500, the active slot's is 200" in said.error
        assert "content-type is text/html, the active slot's is application/json" in said.error
        assert at.router.choice.active == "blue"
        (finding,) = (await at.say("POST", "/preflight", {"slot": "s"})).answer["findings"]
        assert (finding["status"], finding["active_status"]) == (500, 200)
        assert (await at.say("POST", "/slots", {"action": "use", "slot": "s", "force": True})).error == ""
        assert at.router.choice.active == "s"


async def test_a_slot_that_answers_alike_is_used(tmp_path: Path) -> None:
    right = respond(200, [("Content-Type", "application/json")], b"{}")
    async with running(tmp_path, right, right, more=PREFLIGHT) as at:
        assert (await at.say("POST", "/slots", {"action": "use", "slot": "s"})).error == ""
        assert [len(upstream.requests) for upstream in at.upstreams] == [1, 1]


SHADOW = '[shadow]\nslot = "s"\nshare = 1.0\nrequests = 2\n'


async def test_a_shadow_gets_copies_within_its_budget_and_the_caller_nothing_of_it(tmp_path: Path) -> None:
    answer = json.dumps({"usage": {"input_tokens": 7, "output_tokens": 5}}).encode()
    async with running(tmp_path, respond(200, [], b"active"), respond(200, [], answer), more=SHADOW) as at:
        for number in range(3):
            response = await at.post([("x-number", str(number)), ("Authorization", "Bearer caller")])
            assert response.body == b"active"
        shadow = at.control.shadow
        assert shadow is not None
        await shadow.idle()
        copies = at.upstreams[1].requests
        assert [dict(request.headers)[b"x-number"] for request in copies] == [b"0", b"1"]
        assert all(dict(request.headers)[b"Authorization"] == b"Bearer caller" for request in copies)
        assert all(b"x-kgb-inner" not in dict(request.headers) for request in copies)
        assert (shadow.sent, shadow.dropped) == (2, 1)
        assert shadow.budget.left(shadow.clock()) == (0, 1_000_000 - 24)


async def test_nobody_else_comes_through_the_inner_door(tmp_path: Path) -> None:
    async with running(tmp_path, respond(200, [], b"blue"), respond(200, [], b"s")) as at:
        token = at.app[GATEWAY].inner.decode()
        forged = f'{token} {{"slot": "s", "caller": "x", "facts": {{}}}}'
        assert (await at.post([("x-kgb-inner", forged)])).body == b"blue"

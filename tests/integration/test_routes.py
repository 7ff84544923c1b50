"""Requests through the routes of a slot: who is asked, with which credential, and what happens when one fails."""

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import zstandard
from aiohttp import web

from fiedler_proxy.attempts import Attempts
from fiedler_proxy.breaker import FAILURES
from fiedler_proxy.exchange import Exchange
from fiedler_proxy.lifecycle import GATEWAY
from fiedler_proxy.router import ROUTER, Router
from fiedler_proxy.server import Handler
from fiedler_proxy.slot_choice import Choice
from fiedler_proxy.testing import (
    Abort,
    Address,
    RawClient,
    ReadHead,
    ReceivedRequest,
    ReceivedResponse,
    ScriptedUpstream,
    UpstreamConnection,
    respond,
    serve_forever,
    start_app,
)
from fiedler_proxy.testing.connection import Headers
from fiedler_proxy.testing.upstream import Script
from kgb_gateway.app import create_app, load
from kgb_gateway.keys_edit import create_key

Routes = Sequence[Mapping[str, object]]

BODY = json.dumps({"model": "claude-x", "messages": [{"role": "user", "content": "hello"}]}).encode()


@attrs.define(eq=False)
class Site:
    """A gateway with two or more upstreams behind the slot ``s``."""

    address: Address
    app: web.Application
    upstreams: list[ScriptedUpstream]

    @property
    def router(self) -> Router:
        return self.app[ROUTER]

    @property
    def asked(self) -> list[int]:
        """How many requests each upstream got."""
        return [len(upstream.requests) for upstream in self.upstreams]

    async def post(self, target: str = "/v1/messages", headers: Headers = (), body: bytes = BODY) -> ReceivedResponse:
        async with RawClient(self.address.host, self.address.port) as client:
            await client.post(target, headers, body)
            return await client.read_response()


@contextlib.asynccontextmanager
async def site(
    *scripts: Script | Sequence[Any],
    routes: Routes = (),
    providers: Mapping[str, Mapping[str, object]] | None = None,
    route: Mapping[str, object] | None = None,
    **flags: Any,
) -> AsyncIterator[Site]:
    """``scripts`` are the upstreams p0, p1 ...; ``providers`` says more of them; ``routes``, or one to all with what ``route`` says."""
    async with contextlib.AsyncExitStack() as stack:
        upstreams = [
            await stack.enter_async_context(ScriptedUpstream(script, ignore_errors=True)) for script in scripts
        ]
        tables = {
            f"p{number}": {"url": upstream.url, **(providers or {}).get(f"p{number}", {})}
            for number, upstream in enumerate(upstreams)
        }
        used = routes or [{"upstreams": list(tables), **(route or {})}]
        app = create_app(
            upstream=upstreams[-1].url,
            providers=tables,
            slots={"s": list(used)},
            **{"chain": ("request_id", "fiedler"), **flags},
        )
        app[ROUTER].put(Choice("s"))
        yield Site(await stack.enter_async_context(start_app(app)), app, upstreams)


def says(text: str, status: int = 200, headers: Headers = ()) -> Script:
    return respond(status, headers, text.encode())


async def silent(connection: UpstreamConnection) -> None:
    """Takes a request, and says nothing."""
    await connection.request()
    await connection.stall()


CLASSES: Mapping[str, tuple[Any, bool | None]] = {
    "429": (says("busy", 429, [("Retry-After", "7")]), True),
    "402": (says("pay", 402), True),
    "503": (says("later", 503), True),
    "529": (says("overloaded", 529), True),
    "500": (says("oops", 500), False),
    "502": (says("bad", 502), False),
    "400": (says("wrong", 400), None),
    "404": (says("none", 404), None),
    "broken": ([ReadHead(), Abort()], False),
    "timeout": (silent, False),
}
"""What the first upstream does, and whether another one is asked: by default, only where the route says so (False), or never (None)."""


@pytest.mark.parametrize("asked_for", [False, True])
@pytest.mark.parametrize("kind", CLASSES)
async def test_another_upstream_is_asked_by_class(kind: str, asked_for: bool) -> None:
    script, by_default = CLASSES[kind]
    goes_on = by_default is True or (asked_for and by_default is not None)
    route = {"retry": [kind]} if asked_for and by_default is not None else {}
    flags: dict[str, Any] = {"timeouts": {"first_byte": 0.1}} if kind == "timeout" else {}
    async with site(script, says("second"), route=route, **flags) as at:
        response = await at.post()
        assert at.asked == [1, 1 if goes_on else 0]
        if goes_on:
            assert (response.status, response.body) == (200, b"second")
            assert await at.upstreams[1].requests[0].body() == BODY
        else:
            assert response.status == ({"broken": 502, "timeout": 504}.get(kind) or int(kind))


async def test_an_upstream_that_cannot_be_reached() -> None:
    async with site(says("first"), says("second")) as at:
        await at.upstreams[0].stop()
        response = await at.post()
        assert (response.status, response.body) == (200, b"second")


async def test_when_all_fail_the_last_answer_is_the_upstreams_own() -> None:
    async with site(says("first", 429), says("second", 529, [("X-Own", "yes")])) as at:
        response = await at.post()
        assert (response.status, response.body, response.header("x-own")) == (529, b"second", b"yes")


async def test_an_answer_that_was_put_aside_is_given_when_nobody_else_answers() -> None:
    async with site(says("first", 529, [("X-Own", "yes"), ("Retry-After", "3")]), says("second")) as at:
        await at.upstreams[1].stop()
        response = await at.post()
        assert (response.status, response.body) == (529, b"first")
        assert (response.header("x-own"), response.header("retry-after")) == (b"yes", b"3")


async def test_a_streamed_answer_is_not_touched() -> None:
    async def stream(conn: UpstreamConnection) -> None:
        request = await conn.request()
        await request.body()
        await conn.send_head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
        await conn.chunk(b"data: one\n\n")
        conn.abort()

    async with site(stream, says("second")) as at:
        async with RawClient(at.address.host, at.address.port) as client:
            await client.post("/v1/messages", (), BODY)
            assert (await client.read_head()).status == 200
            data, _ = await client.read_until_close()
        assert data.startswith(b"b\r\ndata: one\n\n")
        assert at.asked == [1, 0]


async def test_an_upload_that_still_flows_goes_on_to_the_next_upstream() -> None:
    async def early(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy")
        await conn.stall()

    async with site(early, says("second")) as at:
        async with RawClient(at.address.host, at.address.port) as client:
            await client.request("POST", "/v1/messages", [("Content-Length", "20")])
            await client.send(b"first half")
            await at.upstreams[1].wait_for_requests(1)
            await client.send(b"other half")
            response = await client.read_response()
        assert (response.status, response.body) == (200, b"second")
        assert await at.upstreams[1].requests[0].body() == b"first halfother half"


async def test_a_request_is_told_once_however_often_it_is_sent() -> None:
    async with site(says("first", 503), says("second", 429), says("third"), providers={}) as at:
        response = await at.post()
        assert response.body == b"third"
        assert at.asked == [1, 1, 1]
        bodies = [await upstream.requests[0].body() for upstream in at.upstreams]
        assert bodies == [BODY] * 3


class TestCredentials:
    """A gateway's own key takes the place of the caller's, and is nowhere but on the wire."""

    @pytest.mark.parametrize(
        ("place", "name", "value"),
        [
            ("bearer", b"authorization", b"Bearer central"),
            ("x-api-key", b"x-api-key", b"central"),
            ("x-goog-api-key", b"x-goog-api-key", b"central"),
            ("api-key", b"api-key", b"central"),
        ],
    )
    async def test_is_put_where_the_provider_looks(self, place: str, name: bytes, value: bytes, tmp_path: Path) -> None:
        (tmp_path / "key").write_text("central\n")
        providers = {"p0": {"place": place, "keys": [f"file:{tmp_path / 'key'}"]}}
        async with site(says("ok"), providers=providers) as at:
            await at.post("/v1/x?key=callers&a=1", [("x-api-key", "callers"), ("Authorization", "Bearer callers")])
            (request,) = at.upstreams[0].requests
        assert request.header(name) == value
        assert b"callers" not in b"".join(value for _, value in request.headers)
        assert request.target == b"/v1/x?a=1"

    async def test_a_file_that_changes_is_read_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fiedler_proxy.key_source.LOOK_SECONDS", 0.0)
        key = tmp_path / "key"
        key.write_text("one")
        async with site(says("ok"), providers={"p0": {"keys": [f"file:{key}"]}}) as at:
            await at.post()
            key.write_text("other")
            await at.post()
            sent = [request.header(b"authorization") for request in at.upstreams[0].requests]
        assert sent == [b"Bearer one", b"Bearer other"]

    async def test_the_callers_own_goes_on_where_no_key_is_configured(self) -> None:
        async with site(says("ok")) as at:
            await at.post("/v1/x", [("x-api-key", "callers")])
            assert at.upstreams[0].requests[0].header(b"x-api-key") == b"callers"

    async def test_a_server_that_asks_for_none_sees_none(self) -> None:
        async with site(says("ok"), providers={"p0": {"place": "none"}}) as at:
            await at.post("/v1/x", [("x-api-key", "callers"), ("Authorization", "Bearer callers")])
            (request,) = at.upstreams[0].requests
        assert request.header(b"x-api-key") is None
        assert request.header(b"authorization") is None

    async def test_a_key_that_was_turned_away_rests_and_the_next_one_is_used(self, tmp_path: Path) -> None:
        async def handle(request: ReceivedRequest, conn: UpstreamConnection) -> None:
            await request.body()
            bad = request.header(b"authorization") == b"Bearer bad"
            await conn.send_response(401 if bad else 200, [], b"no" if bad else b"ok")

        for name in ("bad", "good"):
            (tmp_path / name).write_text(name)
        keys = [f"file:{tmp_path / name}" for name in ("bad", "good")]
        async with site(serve_forever(handle), providers={"p0": {"keys": keys}}) as at:
            first, second = await at.post(), await at.post()
            sent = [request.header(b"authorization") for request in at.upstreams[0].requests]
        assert (first.status, second.status) == (200, 200)
        assert sent == [b"Bearer bad", b"Bearer good", b"Bearer good"]

    async def test_a_callers_own_401_is_the_callers(self) -> None:
        async with site(says("no", 401), says("second"), route={"retry": ["401"]}) as at:
            assert (await at.post()).status == 401
            assert at.asked == [1, 0]

    async def test_no_key_at_all_is_said_without_one(self, tmp_path: Path) -> None:
        async with site(says("ok"), providers={"p0": {"keys": [f"file:{tmp_path / 'none'}"]}}) as at:
            response = await at.post()
        assert response.status == 503
        assert b"no_provider_key" in response.body


class TestRoutes:
    """The first route that matches, by path, headers, caller and model."""

    async def test_by_prefix_which_is_taken_off(self) -> None:
        routes: Routes = [{"upstreams": ["p0"], "prefix": "/one"}, {"upstreams": ["p1"]}]
        async with site(says("0"), says("1"), routes=routes) as at:
            assert (await at.post("/one/v1/x?q=%2F")).body == b"0"
            assert (await at.post("/onex/v1")).body == b"1"
            assert at.upstreams[0].requests[0].target == b"/v1/x?q=%2F"

    @pytest.mark.parametrize(
        ("condition", "headers"),
        [
            ({"headers": {"X-Team": "blue*"}}, [("x-team", "blue-1")]),
            ({"hosts": ["localhost"]}, [("Host", "localhost:1")]),
        ],
    )
    async def test_by_header_and_host(self, condition: Mapping[str, object], headers: Headers) -> None:
        routes: Routes = [{"upstreams": ["p0"], **condition}, {"upstreams": ["p1"]}]
        async with site(says("0"), says("1"), routes=routes) as at:
            assert (await at.post(headers=headers)).body == b"0"
            assert (await at.post()).body == b"1"

    async def test_by_model_wherever_it_stands(self) -> None:
        routes: Routes = [{"upstreams": ["p0"], "models": ["claude-*"]}, {"upstreams": ["p1"]}]
        late = b'{"messages": [{"model": "claude-inside"}], "x": "\\"model\\": 1", "model" : "claude-y"}'
        other = b'{"messages": [{"model": "claude-inside"}], "model": "gpt"}'
        async with site(says("0"), says("1"), routes=routes) as at:
            assert (await at.post(body=late)).body == b"0"
            assert (await at.post(body=other)).body == b"1"
            assert (await at.post(body=b"no json")).body == b"1"
            assert (await at.post("/v1beta/models/claude-z:generateContent", body=b"{}")).body == b"0"
            assert await at.upstreams[0].requests[0].body() == late

    async def test_by_model_of_an_upload_that_comes_in_pieces(self) -> None:
        routes: Routes = [{"upstreams": ["p0"], "models": ["claude-*"]}, {"upstreams": ["p1"]}]
        async with site(says("0"), says("1"), routes=routes) as at:
            async with RawClient(at.address.host, at.address.port) as client:
                await client.request("POST", "/v1/messages", [("Transfer-Encoding", "chunked")])
                for piece in (b'{"mod', b'el": "cla', b'ude-1"}'):
                    await client.send(b"%x\r\n%s\r\n" % (len(piece), piece))
                await client.send(b"0\r\n\r\n")
                assert (await client.read_response()).body == b"0"
            assert await at.upstreams[0].requests[0].body() == b'{"model": "claude-1"}'

    async def test_an_alias_replaces_that_one_value(self) -> None:
        routes: Routes = [
            {"upstreams": ["p0"], "models": ["fast"], "aliases": {"fast": "claude-haiku"}},
            {"upstreams": ["p1"]},
        ]
        async with site(says("0"), says("1"), routes=routes) as at:
            assert (await at.post(body=b'{ "max_tokens":1 ,"model" : "fast",\n"x":1.0}')).body == b"0"
            (request,) = at.upstreams[0].requests
            assert await request.body() == b'{ "max_tokens":1 ,"model" : "claude-haiku",\n"x":1.0}'

    @pytest.mark.parametrize("coding", ["gzip", "zstd"])
    async def test_an_alias_in_a_packed_body(self, coding: str) -> None:
        routes: Routes = [{"upstreams": ["p0"], "aliases": {"fast": "claude-haiku"}}]
        plain = b'{"model": "fast", "x": 1.0}'
        packed = gzip.compress(plain) if coding == "gzip" else zstandard.compress(plain)
        seen: list[Exchange] = []
        async with site(says("0"), routes=routes) as at:
            at.router.watchers += (seen.append,)
            assert (await at.post(headers=[("Content-Encoding", coding)], body=packed)).body == b"0"
            (request,) = at.upstreams[0].requests
            assert await request.body() == b'{"model": "claude-haiku", "x": 1.0}'
            assert request.header(b"content-encoding") is None
        assert seen[0].transformed
        assert str(seen[0].facts["model_alias"]).startswith("fast -> claude-haiku")

    async def test_by_caller(self, tmp_path: Path) -> None:
        routes: Routes = [{"upstreams": ["p0"], "callers": ["team-*"]}, {"upstreams": ["p1"]}]
        _, token = create_key(tmp_path / "keys.json", "team-a")
        links = {"auth": {"keys_file": str(tmp_path / "keys.json")}}
        async with site(
            says("0"), says("1"), routes=routes, chain=("request_id", "auth", "fiedler"), links=links
        ) as at:
            assert (await at.post(headers=[("x-kgb-key", token)])).body == b"0"

    async def test_an_error_takes_the_dialect_of_the_route(self) -> None:
        routes: Routes = [{"upstreams": ["p0"], "prefix": "/g"}]
        async with site([Abort()], routes=routes, providers={"p0": {"like": "gemini"}}) as at:
            answer = await at.post("/g/odd")
        assert json.loads(answer.body)["error"]["status"] == "UNAVAILABLE"

    async def test_two_models_in_one_body_are_refused(self) -> None:
        routes: Routes = [{"upstreams": ["p0"], "models": ["a"]}, {"upstreams": ["p1"]}]
        async with site(says("0"), says("1"), routes=routes) as at:
            response = await at.post(body=b'{"model": "a", "model": "b"}')
        assert response.status == 400
        assert b"ambiguous_model" in response.body


async def test_blue_goes_straight_to_the_base_url() -> None:
    async with site(says("0"), says("base")) as at:
        at.router.put(Choice("blue"))
        assert (await at.post("/anthropic-proxy/v1/messages")).body == b"base"
        assert at.upstreams[1].requests[0].target == b"/v1/messages"


async def test_an_exchange_keeps_the_slot_it_began_in() -> None:
    first_read = asyncio.Event()

    async def slowly(conn: UpstreamConnection) -> None:
        request = await conn.request()
        await request.body()
        await conn.send_head(200, [("Content-Length", "6")])
        await conn.send(b"one")
        await first_read.wait()
        await conn.send(b"two")
        await conn.stall()

    async with site(slowly, says("base")) as at:
        async with RawClient(at.address.host, at.address.port) as client:
            await client.post("/v1/messages", (), BODY)
            await client.read_head()
            assert await client.read_some() == b"one"
            (exchange,) = at.app[GATEWAY].live
            at.router.put(at.router.choice.using("blue", "test"))
            assert (await at.post()).body == b"base"
            assert exchange.slot == "s"
            first_read.set()
            assert await client.read_some() == b"two"


async def test_an_answer_that_breaks_off_counts_against_the_upstream(tmp_path: Path) -> None:
    async def handle(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await request.body()
        await conn.send_head(200, [("Transfer-Encoding", "chunked")])
        await conn.chunk(b"half")
        conn.abort()

    async with site(serve_forever(handle), says("second")) as at:
        for _ in range(FAILURES):
            async with RawClient(at.address.host, at.address.port) as client:
                await client.post("/v1/messages", [], BODY)
                assert (await client.read_head()).status == 200
                await client.read_until_close()
        assert (await at.post()).body == b"second"
        assert at.asked == [FAILURES, 1]


LONG = json.dumps({"model": "fast", "x": "y" * 5000}).encode()


async def test_a_body_above_the_cap_is_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Attempts, "cap", 1000)
    begun = asyncio.Event()

    async def later(connection: UpstreamConnection) -> None:
        request = await connection.request()
        begun.set()
        await request.body()
        await connection.send_response(503, [], b"later")

    async with site(later, says("second")) as at:
        async with RawClient(at.address.host, at.address.port) as client:
            await client.request("POST", "/v1/messages", [("Content-Length", str(len(LONG)))])
            await begun.wait()
            for start in range(0, len(LONG), 700):
                await client.send(LONG[start : start + 700])
            assert (await client.read_response()).body == b"later"
        assert at.asked == [1, 0]


async def test_above_the_cap_a_model_is_found_but_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fiedler_proxy.body_peek.SCAN_CAP", 1000)
    routes: Routes = [
        {"upstreams": ["p0"], "headers": {"x-alias": "*?"}, "aliases": {"fast": "slow"}},
        {"upstreams": ["p1"], "models": ["fast"]},
    ]
    async with site(says("0"), says("1"), routes=routes) as at:
        for headers, status in (([], 200), ([("x-alias", "yes")], 413)):
            async with RawClient(at.address.host, at.address.port) as client:
                await client.request("POST", "/v1/messages", [*headers, ("Content-Length", str(len(LONG)))])
                for start in range(0, len(LONG), 700):
                    await client.send(LONG[start : start + 700])
                answer = await client.read_response()
                assert answer.status == status, answer.body
        assert await at.upstreams[1].requests[0].body() == LONG
        assert b"name the model as the provider does" in answer.body
        assert at.asked == [0, 1]


async def test_the_environment_wins_over_the_chosen_slot_when_it_has_changed(tmp_path: Path) -> None:
    def router(url: str) -> Router:
        return create_app(load({"data_dir": str(tmp_path)}, {"KGB_TARGET_URL": url}))[ROUTER]

    await router("http://one.example").change(lambda choice: choice.using("green", "test"))
    assert router("http://one.example").choice.active == "green"
    changed = router("http://two.example")
    assert (changed.choice.active, changed.choice.log[-1].by) == ("blue", "environment")
    assert changed.tables.base.url == "http://two.example"


@web.middleware
async def again(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A link that asks once more when an answer has been given."""
    await handler(request)
    return await handler(request)


async def test_a_link_that_asks_again_leaves_nothing_running() -> None:
    async with site(says("first"), says("second"), chain=("request_id", f"{__name__}:again", "fiedler")) as at:
        async with RawClient(at.address.host, at.address.port) as client:
            await client.post("/v1/messages", [], BODY)
            assert (await client.read_response()).body == b"first"
            await client.read_until_close()
        assert at.asked == [1, 0]
        assert {live.running for live in at.router.lives.values()} == {0}


async def test_a_breaker_leaves_an_upstream_alone_that_keeps_failing() -> None:
    async def failing(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await request.body()
        await conn.send_response(503, [], b"no")

    async def serving(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await request.body()
        await conn.send_response(200, [], b"ok")

    async with site(serve_forever(failing), serve_forever(serving)) as at:
        for _ in range(8):
            assert (await at.post()).body == b"ok"
        assert at.asked == [5, 8]


# The list of models.


def listing(*names: str, anthropic: bool = False) -> Script:
    rows = [{"id": name, **({"display_name": name.title()} if anthropic else {"created": 7})} for name in names]
    return respond(200, [("Content-Type", "application/json")], json.dumps({"data": rows}).encode())


@pytest.mark.parametrize("dialect", ["anthropic", "openai", "gemini"])
async def test_the_models_of_every_provider_in_the_callers_dialect(dialect: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k")
    keyed: dict[str, object] = {"keys": [f"file:{tmp_path}/key"]}
    headers: dict[str, Headers] = {
        "anthropic": [("anthropic-version", "2023-06-01")], "openai": [("Authorization", "Bearer x")],
        "gemini": [("x-goog-api-key", "x")],
    }  # fmt: skip
    async with site(
        listing("claude-a", anthropic=True),
        listing("gpt-b", "gpt-c"),
        respond(500),
        providers={
            "p0": {"like": "anthropic", **keyed},
            "p1": {"like": "openai", **keyed},
            "p2": {"like": "xai", **keyed},
        },
        routes=[
            {"upstreams": ["p0"], "models": ["claude*"], "aliases": {"quick": "claude-a"}},
            {"upstreams": ["p1", "p2"]},
        ],
        links={"provider_route": {"merge_models": True}},
    ) as at:
        async with RawClient(at.address.host, at.address.port) as client:
            await client.get("/v1beta/models" if dialect == "gemini" else "/v1/models", headers[dialect])
            answer = await client.read_response()
        assert at.asked == [1, 1, 1]
        said = json.loads(answer.body)
        rows = said["models"] if dialect == "gemini" else said["data"]
        names = [row.get("id") or row["name"].removeprefix("models/") for row in rows]
        assert names == ["claude-a", "gpt-b", "gpt-c", "quick"]
        assert said.get("object") == ("list" if dialect == "openai" else None)
        assert all(value != b"x" for request in at.upstreams[0].requests for _, value in request.headers)


async def test_a_callers_own_key_goes_to_no_other_provider_for_a_list(tmp_path: Path) -> None:
    async with (
        site(
            listing("claude-a", anthropic=True),
            listing("gpt-b"),
            providers={"p0": {"like": "anthropic"}, "p1": {"like": "openai"}},
            links={"provider_route": {"merge_models": True}},
        ) as at,
        RawClient(at.address.host, at.address.port) as client,
    ):
        await client.get("/v1/models", [("anthropic-version", "2023-06-01"), ("x-api-key", "callers")])
        assert [row["id"] for row in json.loads((await client.read_response()).body)["data"]] == ["claude-a"]
        assert at.asked == [1, 0]

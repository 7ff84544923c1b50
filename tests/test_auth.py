"""auth: who gets in, what a refusal says, and that no key of ours ever reaches an upstream."""

import base64
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
import pytest
from aiohttp import web
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fiedler_proxy.errors import ExchangeError, SettingsError
from fiedler_proxy.exchange import Exchange, Outcome
from fiedler_proxy.lifecycle import EXCHANGE, Gateway, create_application
from fiedler_proxy.relay import Relay
from fiedler_proxy.server import Handler
from fiedler_proxy.testing import (
    RawClient,
    ReceivedRequest,
    ReceivedResponse,
    ScriptedUpstream,
    UpstreamConnection,
    check_middleware,
    serve_forever,
    start_app,
)
from fiedler_proxy.upstream import parse_upstream
from kgb_gateway.caller import ANONYMOUS, Caller
from kgb_gateway.keys_edit import create_key, revoke_key, rotate_key
from kgb_gateway.middlewares.auth import CALLER, Auth

Pairs = list[tuple[str, str]]

PROVIDER = "sk-ant-oat01-provider-credential"
NAMES = ("x-kgb-key", "authorization", "x-api-key", "x-goog-api-key")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@serve_forever
async def answer(request: ReceivedRequest, conn: UpstreamConnection) -> None:
    await request.body()
    await conn.send_response(200, [(b"content-type", b"text/plain")], b"hello")


@web.middleware
@attrs.frozen
class Seen:
    """Stands behind auth and keeps what it sees."""

    exchanges: list[Exchange] = attrs.field(factory=list)
    callers: list[Caller] = attrs.field(factory=list)

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.callers.append(request[CALLER])
        return await handler(request)


@web.middleware
@attrs.frozen
class Before:
    """Stands before auth and keeps the exchanges."""

    exchanges: list[Exchange] = attrs.field(factory=list)

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.exchanges.append(request[EXCHANGE])
        return await handler(request)


@attrs.frozen
class House:
    """A gateway with auth in front of a scripted upstream."""

    client: RawClient
    upstream: ScriptedUpstream
    callers: list[Caller]
    exchanges: list[Exchange]

    async def ask(self, headers: Pairs, target: str = "/v1/messages", method: str = "POST") -> ReceivedResponse:
        await self.client.request(method, target, headers, b"" if method == "GET" else b"{}")
        return await self.client.read_response(method)

    async def refused(self, headers: Pairs, target: str = "/v1/messages") -> dict[str, Any]:
        """The document of a 401 on a connection of its own (a refusal may close it)."""
        async with RawClient(self.client.host, self.client.port) as client:
            await client.get(target, headers)
            response = await client.read_response("GET")
        assert response.status == 401
        assert response.header("www-authenticate") == b"Bearer"
        assert response.header("x-should-retry") == b"false"
        document: dict[str, Any] = json.loads(response.body)
        return document

    async def code(self, headers: Pairs, target: str = "/v1/models") -> str:
        """The code of a refusal as problem details or in any dialect."""
        document = await self.refused(headers, target)
        if "code" in document:
            return str(document["code"])
        error = document["error"]
        return str(error["details"][0]["reason"].lower() if "details" in error else error["code"])


@contextlib.asynccontextmanager
async def house(link: Auth) -> AsyncIterator[House]:
    before, seen = Before(), Seen()
    async with ScriptedUpstream(answer) as upstream:
        gateway = Gateway(parse_upstream(upstream.url))
        app = create_application(gateway, [before, link, seen], Relay(gateway))
        async with start_app(app) as address, RawClient(address.host, address.port) as client:
            yield House(client, upstream, seen.callers, before.exchanges)


def shapes(token: str) -> list[Pairs]:
    return [
        [("x-kgb-key", token)],
        [("X-Kgb-Key", f"Bearer {token}")],
        [("Authorization", f"Bearer {token}")],
        [("authorization", f"bearer   {token}")],
        [("AUTHORIZATION", f"BEARER\t{token}")],
        [("Authorization", token)],
        [("x-api-key", token)],
        [("X-Goog-Api-Key", token)],
    ]


class TestWhoGetsIn:
    async def test_a_key_is_accepted_in_each_of_its_places(self, path: Path) -> None:
        key, token = create_key(path, "alice", scopes=("path:/v1",))
        async with house(Auth(str(path))) as there:
            for headers in shapes(token):
                assert (await there.ask(headers)).status == 200, headers
            assert set(there.callers) == {Caller("alice", key.id, ("path:/v1",))}
            assert {exchange.caller for exchange in there.exchanges} == {"alice"}
            for request in there.upstream.requests:
                assert token.encode() not in request.raw_head

    async def test_without_a_keys_file_nobody_is_asked(self, path: Path) -> None:
        async with house(Auth(str(path))) as there:
            assert (await there.ask([("x-api-key", PROVIDER)])).status == 200
            assert there.callers == [ANONYMOUS]
            assert there.exchanges[0].caller == ""
            assert there.upstream.requests[0].header(b"x-api-key") == PROVIDER.encode()

    async def test_the_first_key_closes_the_door_at_once_and_each_change_counts(self, path: Path) -> None:
        link = Auth(str(path))
        async with house(link) as there:
            assert not link.requires_key
            assert (await there.ask([])).status == 200
            _, token = create_key(path, "alice")
            assert await there.code([]) == "missing_key"
            assert link.requires_key
            assert (await there.ask([("x-kgb-key", token)])).status == 200
            _, new = rotate_key(path, "alice")
            assert await there.code([("x-kgb-key", token)]) == "expired_key"
            assert (await there.ask([("x-kgb-key", new)])).status == 200
            revoke_key(path, "alice")
            assert await there.code([("x-kgb-key", new)]) == "revoked_key"

    async def test_always_asks_before_there_is_a_file(self, path: Path) -> None:
        link = Auth(str(path), required="always")
        assert link.requires_key
        async with house(link) as there:
            document = await there.refused([("x-api-key", PROVIDER)])
            assert document["error"]["type"] == "authentication_error"
            assert "kgb keys create" in document["error"]["message"]

    async def test_never_lets_everybody_in_but_no_false_key(self, path: Path) -> None:
        _, token = create_key(path, "alice")
        link = Auth(str(path), required="never")
        assert not link.requires_key
        async with house(link) as there:
            assert (await there.ask([("x-api-key", PROVIDER)])).status == 200
            assert (await there.ask([("x-api-key", token)])).status == 200
            assert [caller.name for caller in there.callers] == ["", "alice"]
            assert await there.code([("x-kgb-key", "sk-something")]) == "invalid_key"
            assert await there.code([("x-api-key", token[:-1])]) == "invalid_key"

    async def test_a_subscription_passes_beside_our_key(self, path: Path) -> None:
        _, token = create_key(path, "alice")
        async with house(Auth(str(path))) as there:
            headers = [("x-kgb-key", token), ("Authorization", f"Bearer {PROVIDER}"), ("x-api-key", "sk-other")]
            assert (await there.ask(headers)).status == 200
            (request,) = there.upstream.requests
            assert request.header(b"authorization") == f"Bearer {PROVIDER}".encode()
            assert request.header(b"x-api-key") == b"sk-other"
            assert request.header(b"x-kgb-key") is None

    async def test_a_provider_credential_before_our_key_is_skipped(self, path: Path) -> None:
        _, token = create_key(path, "alice")
        async with house(Auth(str(path))) as there:
            assert (await there.ask([("Authorization", f"Bearer {PROVIDER}"), ("x-api-key", token)])).status == 200
            (request,) = there.upstream.requests
            assert request.header(b"authorization") == f"Bearer {PROVIDER}".encode()
            assert request.header(b"x-api-key") is None

    async def test_a_helper_that_sends_the_key_twice_leaves_no_trace(self, path: Path) -> None:
        _, token = create_key(path, "alice")
        async with house(Auth(str(path))) as there:
            headers = [
                ("Authorization", f"Bearer {token}"),
                ("x-api-key", token),
                ("X-Other", "kept"),
                ("x-other", "too"),
            ]
            assert (await there.ask(headers)).status == 200
            (request,) = there.upstream.requests
            assert token.encode() not in request.raw_head
            assert request.all(b"x-other") == [b"kept", b"too"]

    @pytest.mark.parametrize("userinfo", ["{}", "{}:", ":{}", "user:{}"])
    async def test_a_key_in_basic_credentials_lets_nobody_in_and_goes_nowhere(self, path: Path, userinfo: str) -> None:
        _, token = create_key(path, "alice")
        encoded = base64.b64encode(userinfo.format(token).encode()).decode()
        for credentials in (f"Basic {encoded}", f"basic  {encoded.rstrip('=')}"):
            async with house(Auth(str(path))) as there:
                assert await there.code([("Authorization", credentials)]) == "missing_key"
                assert (await there.ask([("x-kgb-key", token), ("Authorization", credentials)])).status == 200
                assert there.upstream.requests[0].header("authorization") is None

    async def test_other_basic_credentials_pass(self, path: Path) -> None:
        _, token = create_key(path, "alice")
        async with house(Auth(str(path))) as there:
            for credentials in ("Basic dXNlcjpwYXNz", "Basic !", "Basic"):
                await there.ask([("x-kgb-key", token), ("Authorization", credentials)])
                assert there.upstream.requests[-1].header("authorization") == credentials.encode()


class TestRefusals:
    @pytest.mark.parametrize(
        "value", ["", "sk-ant-provider", "Bearer", "kgb_0000000000_" + "a" * 43, "kgb_short", "Basic eA=="]
    )
    async def test_an_invalid_x_kgb_key_never_falls_back(self, path: Path, value: str) -> None:
        _, token = create_key(path, "alice")
        async with house(Auth(str(path))) as there:
            assert await there.code([("x-api-key", token), ("x-kgb-key", value)]) == "invalid_key"
            assert await there.code([("Authorization", f"Bearer {token}"), ("x-kgb-key", value)]) == "invalid_key"
            assert not there.upstream.requests

    async def test_a_repeated_x_kgb_key_is_invalid_even_when_both_are_right(self, path: Path) -> None:
        _, token = create_key(path, "alice")
        async with house(Auth(str(path))) as there:
            assert await there.code([("x-kgb-key", token), ("X-KGB-Key", token)]) == "invalid_key"

    @pytest.mark.parametrize("name", NAMES)
    async def test_each_fault_of_a_key_has_its_code(self, path: Path, name: str) -> None:
        _, revoked = create_key(path, "alice")
        revoke_key(path, "alice")
        _, expired = create_key(path, "bob", expires=1.0)
        _, good = create_key(path, "carol")
        async with house(Auth(str(path))) as there:
            assert await there.code([(name, revoked)]) == "revoked_key"
            assert await there.code([(name, expired)]) == "expired_key"
            assert await there.code([(name, good[:-1])]) == "invalid_key"
            # One that is ours decides; a good one behind it does not help.
            assert await there.code([(name, revoked), ("X-Goog-Api-Key", good)]) == "revoked_key"
            assert not there.upstream.requests

    async def test_the_log_may_name_a_key_that_was_right_once_and_no_other(self, path: Path) -> None:
        key, token = create_key(path, "alice")
        revoke_key(path, "alice")
        async with house(Auth(str(path))) as there:
            await there.refused([("x-kgb-key", token)])
            await there.refused([("x-kgb-key", token[:-1])])
            first, second = there.exchanges
            assert (first.facts["key"], first.caller) == (key.id, "")
            assert "key" not in second.facts

    async def test_a_refusal_speaks_the_callers_dialect(self, path: Path) -> None:
        _, token = create_key(path, "alice")
        wrong = token[:-1]
        async with house(Auth(str(path))) as there:
            anthropic = await there.refused([("x-api-key", wrong), ("anthropic-version", "2023-06-01")], "/v1/models")
            assert anthropic["type"] == "error"
            gemini = await there.refused([("x-goog-api-key", wrong)], "/v1/models")
            assert gemini["error"]["status"] == "UNAUTHENTICATED"
            openai = await there.refused([("Authorization", f"Bearer {wrong}")], "/v1/models")
            assert openai["error"]["code"] == "invalid_key"

    async def test_a_refused_exchange_ends_refused_and_keeps_no_key_outside_the_redacted_headers(
        self, path: Path
    ) -> None:
        _, token = create_key(path, "alice")
        revoke_key(path, "alice")
        async with house(Auth(str(path))) as there:
            await there.refused([("x-api-key", token), ("X-Odd", token)])
            (exchange,) = there.exchanges
            assert (exchange.outcome, exchange.error_code) == (Outcome.REFUSED, "revoked_key")
            assert exchange.find(b"x-odd") is None
            assert exchange.find(b"x-api-key") == token.encode()

    async def test_no_refusal_and_no_log_line_shows_a_credential(
        self, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        _, token = create_key(path, "alice")
        _, revoked = create_key(path, "bob")
        revoke_key(path, "bob")
        async with house(Auth(str(path))) as there:
            for value in (revoked, token[:-1], PROVIDER):
                for name in NAMES:
                    assert value not in json.dumps(await there.refused([(name, value)]))
            assert token not in json.dumps(await there.refused([], f"/v1?key={token}"))
        for secret in (token[:-1], revoked, PROVIDER):
            assert secret not in caplog.text

    @pytest.mark.parametrize("name", NAMES)
    async def test_keys_that_cannot_be_read_let_nobody_in(self, path: Path, name: str) -> None:
        _, token = create_key(path, "alice")
        async with house(Auth(str(path))) as there:
            path.unlink()
            assert await there.code([(name, token)]) == "keys_unavailable"
            assert await there.code([]) == "keys_unavailable"
            assert not there.upstream.requests

    async def test_keys_that_cannot_be_read_are_still_not_sent_on(self, path: Path) -> None:
        _, token = create_key(path, "alice")
        async with house(Auth(str(path), required="never")) as there:
            path.unlink()
            assert (await there.ask([("x-api-key", PROVIDER), ("X-Odd", token)])).status == 200
            assert token.encode() not in there.upstream.requests[0].raw_head
            assert await there.code([("x-api-key", token)]) == "keys_unavailable"

    async def test_a_first_file_that_is_broken_lets_nobody_in(self, path: Path) -> None:
        async with house(Auth(str(path))) as there:
            path.touch(0o600)
            assert await there.code([("x-api-key", PROVIDER)]) == "keys_unavailable"

    async def test_a_half_written_file_locks_nobody_out(self, path: Path) -> None:
        _, token = create_key(path, "alice")
        async with house(Auth(str(path))) as there:
            path.write_text("{")
            assert (await there.ask([("x-kgb-key", token)])).status == 200
            assert await there.code([]) == "missing_key"

    async def test_x_kgb_key_where_there_are_no_keys_is_told_so(self, path: Path) -> None:
        async with house(Auth(str(path))) as there:
            document = await there.refused([("x-kgb-key", "kgb_0000000000_" + "a" * 43)], "/")
            assert (document["code"], "has no keys" in document["hint"]) == ("invalid_key", True)


class TestScopes:
    async def test_a_key_outside_its_scopes_gets_403(self, path: Path) -> None:
        _, token = create_key(path, "alice", scopes=("path:/v1/messages",))
        async with house(Auth(str(path))) as there:
            headers = [("x-kgb-key", token), ("anthropic-version", "2023-06-01")]
            assert (await there.ask(headers, "/v1/messages/count_tokens?beta=true")).status == 200
            response = await there.ask(headers, "/v1/models?x=/v1/messages", "GET")
            document = json.loads(response.body)
            assert (response.status, document["error"]["type"]) == (403, "permission_error")
            assert document["error"]["code"] == "out_of_scope"
            assert "path:/v1/messages" in document["error"]["message"]
            assert response.header("x-should-retry") == b"false"
            assert there.exchanges[1].caller == "alice"
            assert len(there.upstream.requests) == 1

    async def test_a_path_that_leads_out_of_the_scope_is_refused(self, path: Path) -> None:
        _, token = create_key(path, "alice", scopes=("path:/v1/messages",))
        async with house(Auth(str(path))) as there:
            for target in ("/v1/messages/../files", "/v1/messages/%2e%2e/files", "//v1/messages"):
                assert (await there.ask([("x-kgb-key", token)], target, "GET")).status == 403
            assert not there.upstream.requests


class TestTargets:
    @pytest.mark.parametrize(
        ("form", "code"),
        [
            ("/v1/models?key={}", "key_in_query"),
            ("/v1/models?alt=sse&key={}&x", "key_in_query"),
            ("/v1/models?a[]=Bearer%20{}", "key_in_query"),
            ("/v1/models?{}", "key_in_query"),
            ("/v1/models/{}/x?y", "key_in_path"),
            ("/{}", "key_in_path"),
        ],
    )
    async def test_a_key_in_the_url_is_refused(self, path: Path, form: str, code: str) -> None:
        _, token = create_key(path, "alice")
        encoded = "".join(f"%{ord(letter):02x}" for letter in token)
        async with house(Auth(str(path))) as there:
            for text in (token, encoded, token.replace("_", "%5F"), token[:-1]):
                assert await there.code([], form.format(text)) == code
                assert await there.code([("x-kgb-key", token)], form.format(text)) == code
            assert not there.upstream.requests

    async def test_a_provider_key_in_the_query_passes(self, path: Path) -> None:
        _, token = create_key(path, "alice")
        async with house(Auth(str(path))) as there:
            target = f"/v1beta/models?key=AIzaSomething&x={quote('kgb_ %/')}"
            assert (await there.ask([("x-kgb-key", token)], target, "GET")).status == 200
            assert there.upstream.requests[0].target == target.encode()


class TestSettings:
    async def test_it_keeps_the_contract_of_a_middleware(self, path: Path) -> None:
        _, token = create_key(path, "alice")
        assert await check_middleware(Auth(str(path)), headers=[("x-kgb-key", token)])

    def test_faults_stop_the_start_and_say_what_to_do(self, path: Path) -> None:
        with pytest.raises(SettingsError, match="auto, always, never"):
            Auth(str(path), required="sometimes")
        with pytest.raises(SettingsError, match="keys_file names no file"):
            Auth(required="always")
        create_key(path, "alice")
        path.chmod(0o644)
        with pytest.raises(SettingsError, match="chmod 600"):
            Auth(str(path))
        path.chmod(0o600)
        path.write_text("{")
        with pytest.raises(SettingsError, match="damaged"):
            Auth(str(path))

    def test_no_secret_stands_in_its_repr(self, path: Path) -> None:
        create_key(path, "alice")
        assert repr(Auth(str(path))) == f"Auth(keys_file={str(path)!r}, required='auto')"

    def test_a_home_directory_may_be_written_short(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        create_key(tmp_path / "k.json", "alice")
        assert Auth("~/k.json").requires_key


# No combination of headers smuggles a key upstream: the link alone, on a fake request, so that many are tried.

name = st.sampled_from([b"x-kgb-key", b"X-KGB-KEY", b"Authorization", b"x-api-key", b"X-Goog-Api-Key", b"Cookie",
                        b"Connection", b"x-claude-code-session-id", b"Forwarded", b"api-key"])  # fmt: skip
dressing = st.sampled_from(
    [b"%s", b"Bearer %s", b"bearer  %s", b"BEARER\t%s", b" %s ", b"kgb_1234567%s", b"a=%s; b=%s", b"Token %s", b"\xff%s",
     b"Bearer Bearer %s", b"%s,%s", b"Basic %s"]
)  # fmt: skip
filler = st.binary(max_size=12).map(lambda data: data.translate(None, b"\r\n\0"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Auth, list[bytes], list[bytes]]:
    """A link; every token it knows; a few that it does not."""
    path = tmp_path_factory.mktemp("auth") / "keys.json"
    valid = create_key(path, "alice")[1]
    rotated = create_key(path, "bob")[1]
    rotate_key(path, "bob")
    revoked = create_key(path, "carol")[1]
    revoke_key(path, "carol")
    expired = create_key(path, "dave", expires=1.0)[1]
    ours = [token.encode() for token in (valid, rotated, revoked, expired)]
    return Auth(str(path), required="never"), ours, [b"kgb_0000000000_" + b"a" * 43, PROVIDER.encode()]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@example(parts=[(b"X-KGB-KEY", b"%s", 0, b""), (b"Cookie", b"%s", 0, b"")])
@given(parts=st.lists(st.tuples(name, dressing, st.integers(0, 5), filler), max_size=6))
async def test_no_combination_of_headers_smuggles_a_key_upstream(
    world: tuple[Auth, list[bytes], list[bytes]], parts: list[tuple[bytes, bytes, int, bytes]]
) -> None:
    link, ours, foreign = world
    tokens = ours + foreign
    headers = []
    for key, dress, which, extra in parts:
        value = base64.b64encode(extra + b":" + tokens[which]) if dress.startswith(b"Basic") else tokens[which] + extra
        headers.append((key, dress.replace(b"%s", value)))
    exchange = Exchange("GET", "/", request_headers=tuple(headers))
    passed: list[Exchange] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        passed.append(request[EXCHANGE])
        return web.Response()

    request: Any = {EXCHANGE: exchange}
    try:
        await link(request, handler)
    except ExchangeError as error:
        assert error.status == 401
        assert not any(token in f"{error.message}{error.hint}".encode() for token in tokens)
        return
    (forwarded,) = passed
    for key, value in forwarded.request_headers:
        assert key.lower() != b"x-kgb-key"
        decoded = base64.b64decode(value[6:]) if value.startswith(b"Basic ") and key == b"Authorization" else b""
        assert not any(token in value or token in decoded for token in ours)
    # And nothing else is lost.
    kept = [
        pair for pair in headers if not any(token in pair[1] for token in ours) and not pair[1].startswith(b"Basic")
    ]
    assert [pair for pair in forwarded.request_headers if not pair[1].startswith(b"Basic")] == [
        pair for pair in kept if pair[0].lower() != b"x-kgb-key"
    ]

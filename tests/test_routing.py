"""Routes and the model they may depend on: which matches, what a body says, and what a configuration may not say."""

import contextlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiedler_proxy.breaker import FAILURES, OPEN_SECONDS, Breaker, State
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.exchange import Exchange
from fiedler_proxy.explain import explained
from fiedler_proxy.inner import Reply
from fiedler_proxy.key_source import COOL_SECONDS, Key, KeyRing
from fiedler_proxy.model_name import AmbiguousModel, model_in, model_in_path, with_model
from fiedler_proxy.preflight import differences
from fiedler_proxy.provider import PROVIDERS, header_for, native, without_parameter
from fiedler_proxy.route import Asked, Decision, Pick, Route, Slot, cut
from fiedler_proxy.router import BLUE, Router, sticky_of
from fiedler_proxy.shadow import Budget
from fiedler_proxy.slot_choice import Choice
from fiedler_proxy.targets import Live, attempts_of, in_order
from fiedler_proxy.way import Way
from kgb_gateway.app import load

# The model in a body.


@pytest.mark.parametrize(
    ("body", "model"),
    [
        ('{"model": "a"}', "a"),
        ('{"messages": [{"model": "no"}], "model":"a"}', "a"),
        ('{"x": {"model": "no"}}', None),
        ('{"x": "\\"model\\": \\"no\\"", "model": "a"}', "a"),
        ('{"mod\\u0065l": "a"}', "a"),
        ('{"\\u006dodel": "a"}', "a"),
        ('{"model": "\\u00e9\\ud83d\\ude00"}', "é😀"),
        ('{"model": 3}', None),
        ('["model", "a"]', None),
        ('"model"', None),
        ("", None),
        ('{"model"', None),
        ('{"model": "a', None),
        ('{"stream": true, "n": -1.5e3, "model": "a", "x": null}', "a"),
    ],
)
def test_the_model_is_found_where_a_parser_finds_it(body: str, model: str | None) -> None:
    named = model_in(body.encode())
    assert (named.name if named is not None else None) == model


@pytest.mark.parametrize(
    "body",
    ['{"model": "a", "model": "b"}', '{"model": "a", "\\u006dodel": "b"}', '{"model": "a", "x": {}, "model": "b"}'],
)
def test_two_models_are_one_too_many(body: str) -> None:
    with pytest.raises(AmbiguousModel):
        model_in(body.encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["model", '"model"', '{"model": "x"}']),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("model"), inner),
    max_leaves=20,
)


@given(
    st.dictionaries(st.text() | st.just("model"), JSON), st.booleans(), st.sampled_from([None, 1]), st.text(min_size=1)
)
def test_scanning_agrees_with_parsing_and_changes_nothing_else(
    value: dict[str, Any], escaped: bool, indent: int | None, new: str
) -> None:
    body = json.dumps(value, ensure_ascii=escaped, indent=indent).encode("utf-8", "surrogatepass")
    named = model_in(body)
    model = value.get("model")
    if not isinstance(model, str):
        assert named is None
        return
    assert named is not None
    assert named.name == model
    try:
        new.encode()
    except UnicodeEncodeError:
        return
    changed = with_model(body, named, new)
    assert changed[: named.start] == body[: named.start]
    assert changed.endswith(body[named.end :])
    assert json.loads(changed)["model"] == new


@given(st.binary())
def test_no_bytes_upset_it(body: bytes) -> None:
    with contextlib.suppress(AmbiguousModel):
        model_in(body)


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse", "gemini-2.5-pro"),
        ("/v1/projects/p/locations/l/publishers/anthropic/models/claude:rawPredict", "claude"),
        ("/model/anthropic.claude-v1%3A0/invoke", "anthropic.claude-v1%3A0"),
        ("/v1/messages", ""),
        ("/v1/models", ""),
    ],
)
def test_the_model_in_a_path(path: str, model: str) -> None:
    assert model_in_path(path) == model


# Which dialect a bare path is of.


@pytest.mark.parametrize(
    ("path", "names", "bearer", "dialect"),
    [
        ("/v1/messages", (), False, "anthropic"),
        ("/v1/models", ("x-api-key",), False, "anthropic"),
        ("/v1/models", ("anthropic-version",), True, "anthropic"),
        ("/v1/models", (), True, "openai"),
        ("/v1/models", ("x-goog-api-key",), False, "gemini"),
        ("/v1/models", (), False, ""),
        ("/v1beta/models/g:generateContent", (), False, "gemini"),
        ("/v1/chat/completions", (), False, "openai"),
        ("/v1/files", ("anthropic-beta",), True, "anthropic"),
        ("/v1/files", (), True, "openai"),
        ("/", (), False, ""),
    ],
)
def test_headers_decide_before_paths(path: str, names: tuple[str, ...], bearer: bool, dialect: str) -> None:
    assert native(path, names, bearer=bearer) == dialect


# Routes.


def test_a_prefix_ends_at_a_slash() -> None:
    assert [cut(path, "/openai") for path in ("/openai/v1", "/openai", "/openai?x=1", "/openai2/v1", "/v1/openai")] == [
        "/v1", "/", "/?x=1", None, None,
    ]  # fmt: skip


CONDITIONS: Mapping[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "prefix": ({"prefix": "/a"}, {"path": "/a/v1"}, {"path": "/b/v1"}),
    "host": ({"hosts": ("*.lab",)}, {"headers": {"host": "x.lab:80"}}, {"headers": {"host": "lab"}}),
    "header": ({"headers": {"X-Team": "a*"}}, {"headers": {"x-team": "abc"}}, {"headers": {}}),
    "caller": ({"callers": ("team-*",)}, {"caller": "team-1"}, {"caller": "other"}),
    "model": ({"models": ("claude-*", "exact")}, {"model": "exact"}, {"model": "exactly"}),
    "native": ({"native": "gemini"}, {"path": "/v1beta/models"}, {"path": "/v1/messages"}),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_each_condition_matches_what_it_says(name: str) -> None:
    condition, right, wrong = CONDITIONS[name]
    usual: dict[str, Any] = {"method": "POST", "path": "/v1/messages", "headers": {}}
    route = Route("r", ("p",), **condition)
    assert route.why_not(Asked(**{**usual, **right})) == ""
    assert route.why_not(Asked(**{**usual, **wrong})) != ""


def test_the_first_route_wins_and_the_others_say_why_not() -> None:
    slot = Slot("s", (Route("one", ("p",), prefix="/x"), Route("two", ("q",)), Route("three", ("r",))))
    decision = slot.decide(Asked("POST", "/v1", {}))
    assert decision.route.name == "two"
    assert decision.passed == (("one", "the path does not begin with /x"),)


# Order, breakers and keys.


def lives(*names: str) -> list[Live]:
    tables = load(
        {
            "providers": {name: {"url": f"http://{name}.example"} for name in names},
            "slots": {"s": [{"upstreams": list(names)}]},
        }
    ).tables
    assert tables is not None
    router = Router(tables)
    return [router.lives[name] for name in names]


def test_the_order_follows_what_is_asked_for() -> None:
    a, b, c = every = lives("a", "b", "c")
    names = ("a", "b", "c")
    assert in_order(Route("r", names), every, 0.0) == (a, b, c)
    a.running, b.running, c.running = 4, 1, 9
    assert in_order(Route("r", names, pick=Pick.LEAST_BUSY), every, 0.0) == (b, a, c)
    assert in_order(Route("r", names, pick=Pick.LEAST_BUSY, weights=(10, 1, 1)), every, 0.0) == (a, b, c)
    a.latency, b.latency, c.latency = 0.3, 0.2, 0.1
    assert in_order(Route("r", names, pick=Pick.FASTEST), every, 0.0) == (c, a, b)
    weighted = Route("r", names, pick=Pick.WEIGHTED, weights=(0, 1, 3))
    for chance, first in ((0.0, b), (0.24, b), (0.26, c), (0.99, c)):
        assert in_order(weighted, every, 0.0, chance=partial(float, chance))[0] is first


@pytest.mark.parametrize("pick", [Pick.WEIGHTED, Pick.LEAST_BUSY, Pick.FASTEST])
def test_a_session_stays_with_who_served_it_before(pick: Pick) -> None:
    a, b = lives("a", "b")
    way = Way.of(Decision(Route("r", ("a", "b"), pick=pick)), {"a": a, "b": b}, {})
    first = way.sticky_order("s", 0.0)[0]
    first.running, first.latency = 9, 9.0
    assert {way.sticky_order("s", 0.0)[0] for _ in range(50)} == {first}
    assert len({way.sticky_order(f"s{number}", 0.0)[0] for number in range(50)} - {first}) == 1
    for _ in range(FAILURES):
        first.tell_failure(0.0)
    assert way.sticky_order("s", 1.0)[0] is not first


def test_who_refuses_is_left_out_unless_nobody_else_is_there() -> None:
    a, b = every = lives("a", "b")
    for _ in range(FAILURES):
        a.tell_failure(0.0)
    assert in_order(Route("r", ("a", "b")), every, 1.0) == (b,)
    for _ in range(FAILURES):
        b.tell_failure(5.0)
    assert in_order(Route("r", ("a", "b")), every, 6.0) == (a,)


def test_a_breaker_opens_lets_one_probe_through_and_closes() -> None:
    breaker = Breaker()
    for _ in range(FAILURES - 1):
        breaker.failed(0.0)
    assert breaker.state(0.0) is State.CLOSED
    breaker.failed(0.0)
    assert (breaker.state(1.0), breaker.allows(1.0)) == (State.OPEN, False)
    later = OPEN_SECONDS + 0.1
    assert (breaker.state(later), breaker.allows(later)) == (State.HALF_OPEN, True)
    breaker.take(later)
    assert not breaker.allows(later)
    breaker.failed(later)
    assert breaker.until == pytest.approx(later + 2 * OPEN_SECONDS)
    much_later = later + 2 * OPEN_SECONDS + 0.1
    breaker.take(much_later)
    breaker.given_up()
    assert breaker.allows(much_later)
    breaker.take(much_later)
    breaker.succeeded()
    assert breaker.state(much_later) is State.CLOSED


def ring(*secrets: str) -> KeyRing:
    environ = {f"K{number}": secret for number, secret in enumerate(secrets)}
    return KeyRing.of(tuple(f"env:{name}" for name in environ), Path(), environ)


def test_keys_take_turns_and_a_session_keeps_its_own() -> None:
    keys = ring("a", "b", "c")
    assert [key.source for _ in range(4) if (key := keys.take("", 0.0))] == ["env:K0", "env:K1", "env:K2", "env:K0"]
    assert len({key.source for _ in range(5) if (key := keys.take("session", 0.0))}) == 1


@pytest.mark.parametrize(
    ("status", "after", "rests"),
    [
        (429, 7.0, 7.0),
        (429, None, COOL_SECONDS),
        (401, None, 300.0),
        (403, None, 300.0),
        (402, None, 300.0),
        (500, None, 0.0),
        (200, None, 0.0),
    ],
)
def test_a_key_that_is_turned_away_rests(status: int, after: float | None, rests: float) -> None:
    keys = ring("a", "b")
    first = keys.take("", 0.0)
    assert first is not None
    keys.answered(first, status, after, 0.0)
    assert first.rests_until == rests
    if rests:
        assert {key.source for _ in range(3) if (key := keys.take("", 1.0))} == {"env:K1"}


def test_each_key_of_a_provider_is_tried_once() -> None:
    (a,) = lives("a")
    a.keys = ring("x", "y")
    assert list(attempts_of([a], 0.0, 8)) == [a, a]
    a.keys.keys[0].rests_until = 10.0
    assert list(attempts_of([a], 0.0, 8)) == [a]


def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("first\n")
    key = Key(f"file:{path}", {}, tmp_path)
    assert key.read(100.0) == "first"
    path.write_text("second, longer\n")
    assert key.read(100.5) == "first"
    assert key.read(102.0) == "second, longer"
    path.unlink()
    assert key.read(104.0) == "second, longer"  # it is being replaced


def test_a_credential_of_systemds_is_read(tmp_path: Path) -> None:
    (tmp_path / "openai").write_text("from-systemd\n")
    assert Key("credential:openai", {"CREDENTIALS_DIRECTORY": str(tmp_path)}, Path()).read(1.0) == "from-systemd"


@pytest.mark.parametrize(
    ("source", "environ", "why"),
    [
        ("env:NO", {}, "the variable is not set"),
        ("file:/no/such/file", {}, "cannot be read"),
        ("credential:x", {}, "systemd gave no credentials"),
        ("credential:x", {"CREDENTIALS_DIRECTORY": "/no/such"}, "/no/such/x cannot be read"),
    ],
)
def test_a_key_that_is_not_there_says_where_it_was_looked_for(source: str, environ: dict[str, str], why: str) -> None:
    with pytest.raises(LookupError, match=why):
        Key(source, environ, Path()).read(1.0)


def test_a_key_that_no_header_can_hold_is_refused() -> None:
    assert header_for(PROVIDERS["openai"].place, "central") == (b"Authorization", b"Bearer central")
    with pytest.raises(ValueError, match="no header may hold"):
        header_for(PROVIDERS["openai"].place, "a\r\nX: y")


def test_parameters_are_taken_out_and_nothing_else() -> None:
    assert without_parameter("/a?key=s&alt=sse&x=%20", ("key",)) == "/a?alt=sse&x=%20"
    assert without_parameter("/a?key=s", ("key",)) == "/a"
    assert without_parameter("/a?monkey=1", ("key",)) == "/a?monkey=1"


# What sticks to what.


def test_a_canary_sticks_to_the_session_else_to_the_caller() -> None:
    headers = ((b"X-Claude-Code-Session-Id", b"s"),)
    assert sticky_of(Exchange("POST", "/", request_headers=headers, caller="c", remote="r")) == "s"
    assert sticky_of(Exchange("POST", "/", caller="c", remote="r")) == "c"
    assert sticky_of(Exchange("POST", "/", remote="r")) == "r"


# Explained.


def router_of(slots: dict[str, object], **flags: object) -> Router:
    tables = load(
        {
            "providers": {"p": {"url": "http://p.example/base"}, "q": {"like": "openai", "keys": ["env:Q"]}},
            "slots": slots,
            **flags,
        }
    ).tables
    assert tables is not None
    return Router(tables)


def test_a_decision_is_explained_by_the_code_that_makes_it() -> None:
    router = router_of(
        {
            "s": [
                {"name": "one", "prefix": "/x", "upstreams": ["p"]},
                {"name": "two", "models": ["m*"], "aliases": {"mini": "m-1"}, "upstreams": ["q", "p"]},
            ]
        }
    )
    said = explained(router, {"target": "/v1/messages?a=1", "body": '{"model": "mini"}', "slot": "s"})
    assert (said["route"], said["sent_as"], said["transformed"]) == ("two", "m-1", True)
    assert said["passed"] == [{"route": "one", "why": "the path does not begin with /x"}]
    upstreams: Any = said["upstreams"]
    assert [each["credential"] for each in upstreams] == ["env:Q in bearer", "the caller's, as it is"]
    assert upstreams[1]["url"] == "http://p.example/base/v1/messages?a=1"


def test_blue_and_a_canary_are_explained() -> None:
    router = router_of({"s": [{"upstreams": ["p"]}]})
    assert explained(router, {})["route_why"] == f"{BLUE} goes straight to the base URL"
    router.put(Choice("blue").with_canary("s", 0.5, "test"))
    told = {str(explained(router, {"session": f"s{number}"})["slot_why"]) for number in range(20)}
    assert any(each.startswith("the canary, s gets 50.00%") for each in told)
    with pytest.raises(ValueError, match="there is no slot 'nope'; there are blue, s, green"):
        explained(router, {"slot": "nope"})


# Faults of a configuration.


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (
            {"slots": {"blue": [{"upstreams": ["base"]}]}},
            "slots.blue: blue goes straight to [upstream] and has no routes",
        ),
        (
            {"slots": {"s": [{"upstreams": ["opnai"]}]}},
            "slots.s[0].upstreams: 'opnai' is no provider (did you mean 'openai'?)",
        ),
        ({"slots": {"s": [{"upstreams": ["azure"]}]}}, "needs more than its name: give it a table [providers.azure]"),
        ({"slots": {"s": [{"upstreams": []}]}}, "names nobody; write at least one provider"),
        (
            {"slots": {"s": [{"upstreams": ["base"], "weights": [1, 2]}]}},
            "must be 1 numbers, one for each of upstreams",
        ),
        (
            {"slots": {"s": [{"upstreams": ["base"], "weights": [-1.0]}]}},
            "must be numbers of at least 0, not all of them 0",
        ),
        ({"slots": {"s": [{"upstreams": ["base"], "prefix": "openai/"}]}}, "must begin with a slash and end with none"),
        ({"slots": {"s": [{"upstreams": ["base"], "native": "claude"}]}}, "must be anthropic, openai or gemini"),
        ({"slots": {"s": [{"upstreams": ["base"], "retry": ["418"]}]}}, "must be one of 'connect'"),
        ({"slots": {"s": [{"upstreams": ["base"], "pick": "random"}]}}, "must be one of 'ordered'"),
        ({"slots": {"s": [{"upstream": ["base"]}]}}, "(did you mean 'upstreams'?)"),
        ({"slot": "gren"}, "there is no slot 'gren' (did you mean 'green'?); there are blue, green"),
        ({"shadow": {"slot": "x"}}, "shadow.slot: there is no slot 'x'"),
        ({"shadow": {"share": 2.0}}, "must be between 0 and 1"),
        ({"preflight": [{"path": "v1"}]}, "must be a path"),
        ({"preflight": [{"path": "/v1", "key": "sk-1"}]}, "names no source of a key"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(flags: dict[str, object], why: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load(flags)
    assert any(why in fault for fault in raised.value.faults), raised.value.faults


# What a preflight compares, and what a shadow may spend.


def reply(status: int = 200, kind: str = "application/json", size: int = 2, pieces: int = 1) -> Reply:
    return Reply(status, ((b"Content-Type", kind.encode()),), b"{}", size, pieces, 0.1, 0.2)


@pytest.mark.parametrize(
    ("mine", "active", "found"),
    [
        (reply(), reply(), []),
        (reply(kind="application/json; charset=utf-8"), reply(), []),
        (reply(429), reply(), ["status 429, the active slot's is 200"]),
        (reply(kind="text/html"), reply(), ["content-type is text/html, the active slot's is application/json"]),
        (reply(size=0), reply(), ["the body is empty"]),
        (
            reply(kind="text/event-stream", pieces=1),
            reply(kind="text/event-stream", pieces=7),
            ["the stream came at once, in one piece; the active slot's in 7"],
        ),
        (reply(kind="text/event-stream", pieces=2), reply(kind="text/event-stream", pieces=7), []),
    ],
)
def test_what_a_client_would_see_is_compared(mine: Reply, active: Reply, found: list[str]) -> None:
    assert differences(mine, active) == found


def test_a_budget_is_of_an_hour() -> None:
    budget = Budget(requests=2, tokens=100)
    assert [budget.take(now) for now in (0.0, 10.0, 20.0)] == [True, True, False]
    budget.used(70)
    assert budget.left(30.0) == (0, 30)
    assert budget.take(3601.0)
    budget.used(30)
    assert not budget.take(3602.0)
    assert budget.left(3611.0) == (1, 70)

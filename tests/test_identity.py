"""Identity: which agent's session a request says that it belongs to."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgb_gateway.dewey.identity import ID_CAP, Identity, identify

SESSION = "123e4567-e89b-12d3-a456-426614174000"
CLAUDE = {b"user-agent": b"claude-cli/2.1.0 (external, cli)"}


@pytest.mark.parametrize(
    ("headers", "body", "identity"),
    [
        (
            {
                **CLAUDE,
                b"x-claude-code-session-id": SESSION.encode(),
                b"x-claude-code-agent-id": b"a1",
                b"x-claude-code-parent-agent-id": b"a0",
            },
            {},
            Identity("claude-code", SESSION, "a1", "a0"),
        ),
        (
            CLAUDE,
            {"metadata": {"user_id": json.dumps({"device_id": "d", "account_uuid": "", "session_id": SESSION})}},
            Identity("claude-code", SESSION),
        ),
        (
            {},
            {"metadata": {"user_id": f"user_{'0a' * 32}_account_{SESSION}_session_{SESSION}"}},
            Identity("claude-code", SESSION),
        ),
        (
            {},
            {"metadata": {"user_id": f"user_{'0a' * 32}_account__session_{SESSION}"}},
            Identity("claude-code", SESSION),
        ),
        (
            {b"user-agent": b"codex_cli_rs/0.99.0", b"session-id": SESSION.encode(), b"thread-id": b"t"},
            {"prompt_cache_key": "other"},
            Identity("codex", SESSION),
        ),
        ({b"user-agent": b"codex_exec/0.99.0"}, {"prompt_cache_key": SESSION}, Identity("codex", SESSION)),
        (
            {b"x-codex-turn-metadata": json.dumps({"session_id": SESSION, "parent_thread_id": "p"}).encode()},
            {},
            Identity("", SESSION, "", "p"),
        ),
        ({b"user-agent": b"opencode/1.2", b"x-session-id": b"ses_1"}, {}, Identity("opencode", "ses_1")),
        ({b"x-session-affinity": b"ses_2"}, {}, Identity("opencode", "ses_2")),
        ({b"user-agent": b"GeminiCLI/0.20.0 (linux; x64)"}, {}, Identity("gemini-cli")),
        ({b"user-agent": b"OpenAI/Python 2.0"}, {}, Identity()),
        ({}, {}, Identity()),
    ],
)
def test_each_agent_says_it_in_its_own_way(
    headers: dict[bytes, bytes], body: dict[str, object], identity: Identity
) -> None:
    assert identify(headers, body) == identity


def test_a_header_is_surer_than_a_body() -> None:
    body = {"metadata": {"user_id": json.dumps({"session_id": "of-the-body"})}}
    assert identify({b"x-claude-code-session-id": b"of-the-header"}, body).session == "of-the-header"


@pytest.mark.parametrize("odd", [b"two words", b"\x00", b"caf\xe9", b"  "])
def test_what_is_no_id_is_none(odd: bytes) -> None:
    assert identify({b"x-session-id": odd}, {}).session == ""


def test_an_id_is_cut() -> None:
    assert len(identify({b"x-session-id": b"x" * 10_000}, {}).session) == ID_CAP
    assert len(identify({}, {"prompt_cache_key": "x" * 10_000}).session) == ID_CAP


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("[" * 100_000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from([b"user-agent", b"session-id", b"x-codex-turn-metadata", b"x-claude-code-agent-id"])


@given(
    st.dictionaries(names, st.binary(max_size=60), max_size=4),
    st.dictionaries(st.sampled_from(["metadata", "client_metadata", "prompt_cache_key", "session_id"]), anything),
    st.none() | st.text(max_size=60),
)
def test_nothing_a_caller_sends_is_an_error(
    headers: dict[bytes, bytes], body: dict[str, object], user_id: str | None
) -> None:
    if user_id is not None:
        body = {**body, "metadata": {"user_id": "{" + user_id}}
    identity = identify(headers, body)
    assert all(len(value) <= ID_CAP for value in (identity.session, identity.agent_id, identity.parent_agent_id))

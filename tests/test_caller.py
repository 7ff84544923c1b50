"""Callers and scopes: what a key may be used for."""

import posixpath
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgb_gateway.caller import ANONYMOUS, Caller, check_scopes


def may(path: str, *scopes: str) -> bool:
    return Caller("alice", "k", scopes).may_ask(path)


@pytest.mark.parametrize("path", ["/", "/v1/messages", "/anything/../else", "*", ""])
def test_no_scope_is_everything(path: str) -> None:
    assert may(path)
    assert ANONYMOUS.may_ask(path)


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/v1/messages", "path:/v1/messages"),
        ("/v1/messages", "path:/v1/messages/"),
        ("/v1/messages/count_tokens", "path:/v1/messages"),
        ("/v1/messages/", "path:/v1/messages"),
        ("/v1beta/models/m:generateContent", "path:/v1beta/models/m"),
        ("/v1beta/models/m:generateContent", "path:/v1beta/models/m:generateContent"),
        ("/v1/models/org%2Fname", "path:/v1/models"),
        ("/v1/files/..hidden", "path:/v1/files"),
        ("/anything", "path:/"),
    ],
)
def test_a_path_scope_covers_its_path_and_what_is_below(path: str, scope: str) -> None:
    assert may(path, scope)
    assert may(path, "path:/elsewhere", scope)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/messages2",
        "/v1/message",
        "/v1",
        "/",
        "*",
        "/V1/messages",
        "//v1/messages",
        "/x/v1/messages",
        "/v1/messages;x/../files",
        "/v1/messages/../files",
        "/v1/messages/..",
        "/v1/messages/./batches",
        "/v1/messages/%2e%2e/files",
        "/v1/messages/%2E./files",
        "/v1/messages%2f..%2ffiles",
        "/v1/messages/..%2ffiles",
        "/v1/messages/..%5cfiles",
        "/v1/messages/..\\files",
        "/v1/messages/..;/files",
        "/v1/messages/..;a=b/files",
        "/v1/messages/%252e%252e/files",
        "/v1/messages/%25252525252e%25252525252e/files",
    ],
)
def test_a_path_scope_covers_nothing_else(path: str) -> None:
    assert not may(path, "path:/v1/messages")


segments = st.sampled_from(
    ["v1", "messages", "files", "..", ".", "", "%2e%2e", "%2E", "..%2f", "a", "%252e%252e", "..;x"]
)


@given(st.lists(segments, max_size=8))
def test_no_covered_path_can_be_read_as_one_outside(parts: list[str]) -> None:
    path = "/" + "/".join(parts)
    if not may(path, "path:/v1/messages"):
        return
    for _ in range(4):
        resolved = posixpath.normpath(path.replace("\\", "/"))
        assert resolved.startswith("/v1/messages"), path
        path = unquote(path)


def test_scopes_are_checked_and_kept_once() -> None:
    assert check_scopes(["path:/a", "path:/b", "path:/a"]) == ("path:/a", "path:/b")
    assert check_scopes([]) == ()


@pytest.mark.parametrize(
    "word", ["admin", "", "path:", "path:v1", "PATH:/v1", "path:/a b", "path:/ä", "anthropic", "path:/a\n", " path:/a"]
)
def test_an_unknown_scope_is_refused_with_the_way_to_write_one(word: str) -> None:
    with pytest.raises(ValueError, match=r"path:/v1/messages"):
        check_scopes(["path:/v1", word])


@pytest.mark.parametrize("word", ["path:/a/../b", "path:/a?b", "path:/a#b", "path:/%2e%2e", "path:/a%2Fb"])
def test_a_scope_that_no_plain_path_can_meet_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="plain path"):
        check_scopes([word])

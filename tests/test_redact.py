"""Redaction: no credential in what the journal says of a head, and everything else as it came."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiedler_proxy.headers import CREDENTIALS
from kgb_gateway.redact import QUERY_CREDENTIALS, Redactor

CANARY = "canary-5f3a"
REDACTOR = Redactor(b"s" * 32, (b"x-own",), ("mine",))


@pytest.mark.parametrize("name", sorted(CREDENTIALS | {b"x-own"}))
def test_a_credential_is_a_fingerprint(name: bytes) -> None:
    pairs, prints = REDACTOR.head(((name.title(), CANARY.encode()), (b"X-Plain", b"caf\xe9")))
    assert pairs == name.title() + b": [REDACTED]\r\nX-Plain: caf\xe9"
    assert prints == {name.decode(): REDACTOR.fingerprint(CANARY.encode())}
    assert CANARY not in str((pairs, prints))


def test_one_key_has_one_fingerprint_and_another_secret_another() -> None:
    _, bearer = REDACTOR.head(((b"Authorization", b"Bearer sk-1"),))
    _, plain = REDACTOR.head(((b"x-api-key", b"sk-1"),))
    _, other = REDACTOR.head(((b"x-api-key", b"sk-2"),))
    assert bearer["authorization"] == plain["x-api-key"] != other["x-api-key"]
    assert Redactor(b"t" * 32).fingerprint(b"sk-1") != REDACTOR.fingerprint(b"sk-1")


@pytest.mark.parametrize("name", [*sorted(QUERY_CREDENTIALS), "mine", "KEY", "%6bey", "k%65y", "X-Amz-Signature"])
def test_a_query_parameter_is_hidden_and_the_rest_stays(name: str) -> None:
    target = REDACTOR.target(f"/v1//a%2Fb?alt=sse&{name}={CANARY}&x=%20;y&&z")
    assert target == f"/v1//a%2Fb?alt=sse&{name}=[REDACTED]&x=%20;y&&z"


@pytest.mark.parametrize("target", ["/", "/?", "*", "/a?b", "/a?keys=1&monkey=2", "/key=1", "/a?=x", "/a?key="])
def test_what_holds_nothing_secret_stays(target: str) -> None:
    assert REDACTOR.target(target) == target


def test_user_information_goes() -> None:
    assert REDACTOR.target(f"http://u:{CANARY}@host/x?y") == "http://host/x?y"


@pytest.mark.parametrize("key", ["kgb_0123456789_" + "aB3" * 14 + "x", "kgb%5F0123456789%5Fsecret", "kgb_0123456789_"])
def test_a_key_of_ours_goes_wherever_it_stands(key: str) -> None:
    assert key not in REDACTOR.target(f"/v1/{key}/x?y={key}")
    pairs, _ = REDACTOR.head(((b"X-Odd", f"a {key} b".encode()),))
    assert pairs == b"X-Odd: a [REDACTED] b"


@given(st.text(max_size=60), st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=5))
def test_nothing_is_an_error(target: str, headers: list[tuple[bytes, bytes]]) -> None:
    REDACTOR.target(target)
    lines, _ = REDACTOR.head(tuple(headers))
    assert lines.count(b"\r\n") >= len(headers) - 1

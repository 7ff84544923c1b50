"""Headers, keys and request files of ``kgb compare``: secrets come from the environment, faults are named."""

import json
from pathlib import Path

import pytest

from kgb_gateway.compare.requests import (
    Request,
    RequestError,
    Secrets,
    builtin,
    parse_header,
    read_request,
    with_keys,
)

ENVIRON = {
    "MY_KEY": "sk-secret-1\n",
    "ANTHROPIC_API_KEY": "sk-ant-2",
    "OPENAI_API_KEY": "sk-oai-3",
    "EMPTY": "",
    "AB": "ab",
}


@pytest.fixture
def secrets() -> Secrets:
    return Secrets(ENVIRON)


def header(request: Request, name: str) -> str | None:
    return next((value for key, value in request.headers if key.lower() == name), None)


class TestHeader:
    @pytest.mark.parametrize(
        ("text", "pair"),
        [
            ("x-api-key: $MY_KEY", ("x-api-key", "sk-secret-1")),
            ("Authorization: Bearer ${MY_KEY}", ("Authorization", "Bearer sk-secret-1")),
            ("x-plain:a: b ", ("x-plain", "a: b")),
            ("x-empty:", ("x-empty", "")),
        ],
    )
    def test_parsed(self, secrets: Secrets, text: str, pair: tuple[str, str]) -> None:
        assert parse_header(text, secrets) == pair

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("no colon", "'Name: value'"),
            (": x", "'Name: value'"),
            ("a b: x", "'Name: value'"),
            ("Host: x", "leave it out"),
            ("x-api-key: sk-literal", "from the environment"),
            ("Authorization: Bearer sk-literal", "from the environment"),
            ("x: $NOT_SET", "NOT_SET is not set"),
            ("x: $EMPTY", "EMPTY is not set"),
            ("x: a\x00b", "no header may have"),
            ("x: Ā", "no header may have"),
        ],
    )
    def test_refused(self, secrets: Secrets, text: str, words: str) -> None:
        with pytest.raises(RequestError, match=words) as raised:
            parse_header(text, secrets)
        assert "sk-literal" not in str(raised.value)

    def test_mask(self, secrets: Secrets) -> None:
        parse_header("x: $MY_KEY", secrets)
        parse_header("x: $AB", secrets)
        assert secrets.mask("key sk-secret-1, ab") == "key [REDACTED], ab"


class TestKeys:
    def test_each_vendor_gets_its_own(self, secrets: Secrets) -> None:
        asked = with_keys(builtin(), ["ANTHROPIC_API_KEY", "OPENAI_API_KEY"], secrets)
        for request in asked:
            has = (header(request, "x-api-key"), header(request, "authorization"))
            expected = {"anthropic": ("sk-ant-2", None), "openai": (None, "Bearer sk-oai-3"), "none": (None, None)}
            assert has == expected[request.dialect]

    def test_own_name_goes_to_all(self, secrets: Secrets) -> None:
        asked = with_keys(builtin(), ["MY_KEY"], secrets)
        assert {header(request, "authorization") for request in asked} == {"Bearer sk-secret-1"}

    def test_given_header_wins(self, secrets: Secrets) -> None:
        own = Request("x", "GET", "/", (("X-Api-Key", "mine"),), dialect="anthropic")
        assert with_keys([own], ["ANTHROPIC_API_KEY"], secrets) == [own]

    def test_not_set(self, secrets: Secrets) -> None:
        with pytest.raises(RequestError, match="--key-env NOT_SET"):
            with_keys(builtin(), ["NOT_SET"], secrets)

    def test_header_replaces(self) -> None:
        request = Request("x", "GET", "/", (("A", "1"), ("B", "2")))
        assert request.with_headers([("a", "3")], replace=True).headers == (("B", "2"), ("a", "3"))


class TestFile:
    @pytest.mark.parametrize("end", [b"\n", b"\r\n"])
    def test_read(self, tmp_path: Path, secrets: Secrets, end: bytes) -> None:
        path = tmp_path / "one.http"
        lines = [
            b"POST /v1/messages?beta=true HTTP/1.1",
            b"Host: other",
            b"anthropic-version: 1",
            b"x-api-key: $MY_KEY",
        ]
        path.write_bytes(end.join([*lines, b"content-length: 3", b"", b'{"a":\n\n "\xff"}\r\n\r\n']))
        request = read_request(path, secrets)
        assert (request.method, request.target) == ("POST", "/v1/messages?beta=true")
        assert request.headers == (("anthropic-version", "1"), ("x-api-key", "sk-secret-1"))
        assert request.body == b'{"a":\n\n "\xff"}\r\n\r\n'
        assert request.dialect == "anthropic"

    def test_without_body(self, tmp_path: Path, secrets: Secrets) -> None:
        path = tmp_path / "one.http"
        path.write_text("OPTIONS *")
        assert read_request(path, secrets).body == b""

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("", "first line must be METHOD /path"),
            ('{"model": "x"}', "first line must be METHOD /path"),
            ("GET http://x/", "first line must be METHOD /path"),
            ("GET /\nbad header", "line 2"),
            ("GET /\nx-api-key: sk-literal", "from the environment"),
        ],
    )
    def test_refused(self, tmp_path: Path, secrets: Secrets, content: str, words: str) -> None:
        path = tmp_path / "one.http"
        path.write_text(content)
        with pytest.raises(RequestError, match=words) as raised:
            read_request(path, secrets)
        assert str(path) in str(raised.value)

    def test_not_there(self, tmp_path: Path, secrets: Secrets) -> None:
        with pytest.raises(RequestError, match="No such file"):
            read_request(tmp_path / "none", secrets)


def test_builtin_requests_are_what_agents_send() -> None:
    requests = builtin("claude-x", "gpt-x")
    assert len({request.name for request in requests}) == len(requests)
    assert requests[0].method == "HEAD"
    bodies = [json.loads(request.body) for request in requests if request.body and "invalid" not in request.name]
    assert {body["model"] for body in bodies} == {"claude-x", "gpt-x"}
    assert sum(body.get("stream", False) for body in bodies) == 3
    assert all(header(request, "content-type") for request in requests if request.body)

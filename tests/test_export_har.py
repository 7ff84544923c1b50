"""HAR: what its readers require, bodies as they passed, and back again."""

import base64
import json
from typing import Any

import attrs
import pytest

from kgb_gateway.dewey.document import Turn
from kgb_gateway.dewey.imports import Fault, read_har
from tests.documents import conversation, number, turns
from tests.test_export_streams import export


def entries(*found: Turn) -> list[Any]:
    log = json.loads(export("har", conversation(found or turns())))["log"]
    assert log["version"] == "1.2"
    assert log["creator"] == {"name": "kgb", "version": "1"}
    return log["entries"]  # type: ignore[no-any-return]


def test_an_entry_has_what_the_format_requires() -> None:
    entry = entries()[0]
    assert entry["startedDateTime"] == "2026-05-28T20:26:40.500Z"
    assert entry["time"] == 2125
    assert entry["timings"] == {"send": 0, "wait": 500, "receive": 1625}
    assert entry["cache"] == {}
    request, response = entry["request"], entry["response"]
    assert request["method"] == "POST"
    assert request["url"] == "https://api.anthropic.com/v1/messages?beta=true"
    assert request["queryString"] == [{"name": "beta", "value": "true"}]
    assert request["headers"][1] == {"name": "x-api-key", "value": "[REDACTED]"}
    assert request["postData"] == {"mimeType": "application/json", "params": [], "text": '{"model":"é"}\n '}
    assert (request["headersSize"], request["bodySize"], request["cookies"]) == (-1, 17, [])
    assert response["status"] == 200
    assert response["content"] == {"size": 3, "mimeType": "text/event-stream", "text": "/wAB", "encoding": "base64"}
    assert (response["redirectURL"], response["httpVersion"]) == ("", "HTTP/1.1")


def test_a_body_that_is_not_kept_says_so() -> None:
    second = entries()[1]
    assert "postData" not in second["request"]
    assert second["response"]["content"]["comment"] == "the body is not kept"
    assert second["comment"] == "gap: 100 bytes of the response are missing"


def test_a_request_that_is_no_text_is_base64() -> None:
    data = entries(attrs.evolve(turns()[0], request_body=b"\xff"))[0]["request"]["postData"]
    assert (base64.b64decode(data["text"]), data["_encoding"]) == (b"\xff", "base64")


@pytest.mark.parametrize(
    ("upstream", "target", "url"),
    [
        ("anthropic eu", "/v1/messages", "http://anthropic-eu.invalid/v1/messages"),
        ("", "x", "http://unknown.invalid/x"),
        ("https://host/base/", "/v1", "https://host/base/v1"),
        ("https://host", "http://other/v1", "http://other/v1"),
        ("https://host", "/v1?to=http://x", "https://host/v1?to=http://x"),
    ],
)
def test_urls_are_absolute(upstream: str, target: str, url: str) -> None:
    assert entries(Turn("x", upstream=upstream, target=target))[0]["request"]["url"] == url


def test_ours_is_read_again_with_its_id_and_its_bytes() -> None:
    faults: list[Fault] = []
    one, two = read_har([export("har", conversation())], faults.append)
    assert not faults
    first = turns()[0]
    assert (one.exchange, one.at, one.duration, one.first_byte) == (number(1), first.at, 2.125, 0.5)
    assert (one.request_body, one.response_body) == (first.request_body, first.response_body)
    assert (one.target, one.upstream, one.caller, one.session) == (first.target, first.upstream, "ada", "s1")
    assert one.request_headers == first.request_headers
    assert one.facts == {"encoded": True}
    assert (two.exchange, two.outcome, two.request_body) == (number(2), "caller_left", None)

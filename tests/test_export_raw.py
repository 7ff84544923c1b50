"""The bytes as they passed."""

import base64
import json

from tests.documents import conversation, number, turns
from tests.test_export_streams import export


def test_bytes_come_back_as_they_were() -> None:
    one, two = (json.loads(line) for line in export("raw", conversation()).splitlines())
    first = turns()[0]
    assert (one["format"], one["id"], one["outcome"]) == ("kgb-raw-1", number(1), "completed")
    assert base64.b64decode(one["request"]["body"]) == first.request_body
    assert base64.b64decode(one["response"]["body"]) == first.response_body
    assert (one["request"]["method"], one["request"]["target"]) == ("POST", "/v1/messages?beta=true")
    assert one["request"]["headers"] == [["Content-Type", "application/json"], ["x-api-key", "[REDACTED]"]]
    assert (one["response"]["status"], one["response"]["sha256"], one["response"]["size"]) == (200, "bb" * 32, 3)
    assert two["request"]["body"] is None
    assert (two["transformed"], two["partial"], two["notes"]) == (
        True,
        True,
        ["gap: 100 bytes of the response are missing"],
    )

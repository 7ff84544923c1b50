"""JSON as strangers write it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgb_gateway.dewey.transcripts.lax_json import close, loads
from kgb_gateway.dewey.transcripts.model import NotReadable

DOCUMENT = {
    "a": [1, 2.5, True, None, {"b": 'x\\"y\u00e9\n', "c": {}}],
    "d": "é\\",
    "e": -12,
    'k"': [[], [{}]],
    "f": "😀",
}


def test_what_python_reads_is_read_alike() -> None:
    assert loads(json.dumps(DOCUMENT)) == DOCUMENT
    assert loads(json.dumps(DOCUMENT).encode()) == DOCUMENT
    assert loads(json.dumps(DOCUMENT, ensure_ascii=False).encode("utf-16")) == DOCUMENT


def test_the_last_of_duplicate_members_counts() -> None:
    assert loads(b'{"a": 1, "a": 2}') == {"a": 2}


def test_numbers_that_python_will_not_hold_stay_text() -> None:
    digits = "7" * 5000
    assert loads(f'{{"a": {digits}, "b": -{digits}, "c": 12}}') == {"a": digits, "b": f"-{digits}", "c": 12}
    assert loads("[1e999, -1e999, 1.5]") == ["1e999", "-1e999", 1.5]
    assert loads("[NaN, Infinity, -Infinity]") == ["NaN", "Infinity", "-Infinity"]


def test_what_was_read_can_be_written_again() -> None:
    json.dumps(loads("[NaN, 1e999, " + "7" * 5000 + "]"), allow_nan=False)


def test_lone_surrogates_and_nul_stay() -> None:
    assert loads(b'["\\ud83d", "a\\u0000b", "a\x00b"]') == ["\ud83d", "a\0b", "a\0b"]
    assert loads(b'["\xed\xa0\xbd"]') == ["\ud83d"]
    assert loads(b'["\xff"]') == ["\ufffd"]


def test_a_bom_and_space_around() -> None:
    assert loads(b"\xef\xbb\xbf \r\n{} \n") == {}


@pytest.mark.parametrize("deep", ["[" * 200_000, '{"a":' * 200_000, "[" * 200_000 + "]" * 200_000])
def test_deep_nesting_is_not_readable(deep: str) -> None:
    with pytest.raises(NotReadable):
        loads(deep)
    assert isinstance(close(deep), str)


@pytest.mark.parametrize("text", ["", "{", "nope", '{"a": }', "[1,]", "\0"])
def test_no_json(text: str) -> None:
    with pytest.raises(NotReadable):
        loads(text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


def within(part: Any, whole: Any) -> bool:
    """Whether ``part`` is the beginning of ``whole``."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(name in whole and within(member, whole[name]) for name, member in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) <= len(whole) and all(map(within, part, whole))
    if isinstance(part, str) and isinstance(whole, str):
        return whole.startswith(part) or part.encode("utf-16", "surrogatepass")[:-2] in whole.encode(
            "utf-16", "surrogatepass"
        )
    return bool(part == whole)


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), st.booleans())
def test_a_text_cut_anywhere_is_closed(value: dict[str, Any], ascii: bool) -> None:  # noqa: A002
    text = json.dumps(value, ensure_ascii=ascii)
    assert close(text) == text
    for size in range(1, len(text)):
        assert within(json.loads(close(text[:size])), value)


@pytest.mark.parametrize(
    ("cut", "closed"),
    [('{"a":1', "{}"), ('{"a":1,', '{"a":1}'), ('{"a":tru', "{}"), ('{"a":"b\\u00', '{"a":"b"}'), ('["a\\', '["a"]'),
     ('["a\\\\', '["a\\\\"]'), ("[1,[2,3", "[1,[2]]"), ('{"a"', "{}"), ('{"a":', "{}"), ("", ""), ("]", "")],
)  # fmt: skip
def test_what_closing_keeps(cut: str, closed: str) -> None:
    assert close(cut) == closed

"""Tables become attrs classes; every fault is found and says where it stands."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiedler_proxy.config import (
    Faults,
    at_least,
    between,
    build,
    convert,
    from_text,
    keys_of,
    nearest,
    one_of,
    read_toml,
    setting,
)


@attrs.frozen
class Inner:
    depth: int = setting(1, check=at_least(0))


@attrs.frozen
class Sample:
    name: str = "sample"
    count: int = setting(3, check=between(1, 9))
    seconds: float = 1.5
    flag: bool = False
    words: tuple[str, ...] = ()
    place: Path = Path("/place")
    choice: str = setting("a", check=one_of("a", "b"))
    either: str | int = "x"
    inner: Inner = setting(Inner())
    table: Mapping[str, object] = setting({})
    kept: ClassVar[str] = "no key"
    _made: list[str] = attrs.field(init=False, factory=list)


@attrs.frozen
class Needy:
    url: str
    private: str = attrs.field(default="", alias="public")


def faults_of(table: object, cls: type = Sample, where: str = "") -> list[str]:
    faults = Faults()
    assert (build(cls, table, where, faults) is None) == bool(faults.found)
    return faults.found


def built(table: Mapping[str, object], cls: type = Sample) -> Any:
    faults = Faults()
    instance = build(cls, table, "", faults)
    assert not faults.found
    return instance


def test_what_is_not_given_is_the_default() -> None:
    assert built({}) == Sample()


def test_values_of_every_kind() -> None:
    sample = built(
        {
            "name": "n",
            "count": 9,
            "seconds": 2,
            "flag": True,
            "words": ["a", "b"],
            "place": "/elsewhere",
            "choice": "b",
            "either": 7,
            "inner": {"depth": 0},
            "table": {"any": {"thing": 1}},
        }
    )
    assert sample == Sample("n", 9, 2.0, True, ("a", "b"), Path("/elsewhere"), "b", 7, Inner(0), {"any": {"thing": 1}})
    assert isinstance(sample.seconds, float)


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ({"nam": "x"}, "nam: there is no such key (did you mean 'name'?)"),
        ({"zzz": 1}, "zzz: there is no such key"),
        ({"kept": 1}, "kept: there is no such key"),
        ({"made": []}, "made: there is no such key"),
        ({"name": 3}, "name: must be a string, not a whole number"),
        ({"count": "3"}, "count: must be a whole number, not a string"),
        ({"count": True}, "count: must be a whole number, not true or false"),
        ({"count": 3.0}, "count: must be a whole number, not a number"),
        ({"count": 10}, "count: must be between 1 and 9, not 10"),
        ({"seconds": "10s"}, "seconds: must be a number, not a string"),
        ({"seconds": True}, "seconds: must be a number, not true or false"),
        ({"flag": 1}, "flag: must be true or false, not a whole number"),
        ({"words": "a"}, "words: must be a list, each item a string, not a string"),
        ({"words": ["a", 1]}, "words[1]: must be a string, not a whole number"),
        ({"place": 1}, "place: must be a path, not a whole number"),
        ({"choice": "bb"}, "choice: must be one of 'a', 'b' (did you mean 'b'?), not 'bb'"),
        ({"either": 1.5}, "either: must be a string or a whole number, not a number"),
        ({"inner": 1}, "inner: must be a table, not a whole number"),
        ({"inner": {"dept": 1}}, "inner.dept: there is no such key (did you mean 'depth'?)"),
        ({"inner": {"depth": -1}}, "inner.depth: must be at least 0, not -1"),
        ({"table": 1}, "table: must be a table, not a whole number"),
    ],
)
def test_a_fault_says_where_and_what(table: dict[str, object], fault: str) -> None:
    assert faults_of(table) == [fault]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_duration_is_finite(value: float) -> None:
    (fault,) = faults_of({"seconds": value})
    assert fault.startswith("seconds: must be a number")


def test_all_faults_are_found_at_once() -> None:
    found = faults_of({"nam": 1, "count": "x", "inner": {"depth": -1, "width": 2}}, where="links.sample")
    assert found == [
        "links.sample.nam: there is no such key (did you mean 'name'?)",
        "links.sample.count: must be a whole number, not a string",
        "links.sample.inner.depth: must be at least 0, not -1",
        "links.sample.inner.width: there is no such key (did you mean 'depth'?)",
    ]


def test_what_has_no_default_must_be_there() -> None:
    assert faults_of({}, Needy, "links.needy") == ["links.needy.url: the key is missing"]


def test_a_key_goes_by_its_alias() -> None:
    assert built({"url": "u", "public": "p"}, Needy) == Needy("u", "p")
    assert list(keys_of(Needy)) == ["url", "public"]


def test_nothing_but_a_table_is_one() -> None:
    assert faults_of([], where="upstream") == ["upstream: must be a table, not a list"]


def test_a_default_that_can_change_is_nobodys_but_its_own() -> None:
    one, other = built({}), built({})
    one.table["seen"] = True
    assert other.table == {}


def test_nearest_is_silent_where_nothing_is_near() -> None:
    assert nearest("prot", ["port", "host"]) == " (did you mean 'port'?)"
    assert nearest("zzz", ["port", "host"]) == ""
    assert nearest("", ["port"]) == ""
    assert nearest(3, ["port"]) == ""


# Files.


def read(path: Path) -> tuple[dict[str, Any], list[str]]:
    faults = Faults()
    return read_toml(path, faults), faults.found


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text('port = 1\n[links.auth]\nrequired = "café"\n', encoding="utf-8")
    assert read(path) == ({"port": 1, "links": {"auth": {"required": "café"}}}, [])


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"port = = 1", "is not valid TOML: Invalid value (at line 1, column 8)"),
        (b"\xff\xfe", "is not valid TOML: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ],
)
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "gateway.toml"
    path.write_bytes(content)
    assert read(path) == ({}, [f"{path}: {fault}"])


@pytest.mark.parametrize("content", ["a = " + "[" * 5000, "a = " + "9" * 5000])
def test_a_file_beyond_what_can_be_read(tmp_path: Path, content: str) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(content)
    table, faults = read(path)
    assert table == {}
    assert faults[0].startswith(f"{path}: is not valid TOML: ")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert read(tmp_path / "none.toml") == ({}, [f"{tmp_path / 'none.toml'}: the file does not exist"])
    assert read(tmp_path) == ({}, [f"{tmp_path}: cannot be read: Is a directory"])


# The environment.


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (str, "1", "1"),
        (int, "8089", 8089),
        (float, "1.5", 1.5),
        (bool, "on", True),
        (bool, "No", False),
        (tuple[str, ...], "a, b,,c", ["a", "b", "c"]),
        (Path, "/x", "/x"),
    ],
)
def test_a_text_stands_for_a_value(hint: Any, text: str, value: object) -> None:
    assert from_text(hint, text) == value


@pytest.mark.parametrize(("hint", "text"), [(int, "abc"), (int, ""), (float, "1s"), (bool, "maybe")])
def test_a_text_that_stands_for_none(hint: Any, text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the variable is named by whoever reads it
        from_text(hint, text)


# Whatever is written, the answer is a value or a fault.

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.sampled_from(["a", "name", "10s", "~", "\0", "/x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from([*keys_of(Sample), "nam", "", "a.b"]) | st.text(max_size=8)


@settings(max_examples=300)
@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_any_table_is_built_or_faulted(table: dict[str, object]) -> None:
    faults = Faults()
    instance = build(Sample, table, "", faults)
    assert isinstance(instance, Sample) != bool(faults.found)


@given(st.sampled_from([str, int, float, bool, Path, tuple[str, ...], str | int, Inner, Any]), VALUES)
def test_any_value_is_converted_or_faulted(hint: Any, value: object) -> None:
    faults = Faults()
    result = convert(hint, value, "key", faults)
    if faults.found:
        assert faults.found[0].startswith("key")
        assert result is None


# Odd values, and annotations of authors.


def test_an_integer_beyond_any_float_is_a_fault() -> None:
    assert faults_of({"seconds": 10**400})


def test_a_home_that_nobody_has_is_a_fault() -> None:
    assert faults_of({"place": "~nobody-of-that-name/x"})


def test_infinity_is_called_what_it_is() -> None:
    (fault,) = faults_of({"seconds": float("inf")})
    assert "not a number" not in fault


@attrs.frozen
class Annotated:
    word: Literal["a", "b"] = "a"
    items: Sequence[str] = ()
    nested: Inner | None = None
    bare: tuple = ()  # type: ignore[type-arg]


@pytest.mark.parametrize(
    "table",
    [{"word": "b"}, {"items": ["a"]}, {"nested": {"depth": 2}}, {"bare": ["a"]}],
    ids=lambda table: next(iter(table)),
)
def test_annotations_that_authors_use(table: dict[str, object]) -> None:
    assert faults_of(table, Annotated) == []

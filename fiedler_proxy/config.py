"""From TOML, environment and flags to attrs classes: every fault is found, none stops the search for the next.

Owns reading and checking, knows no setting by name. The fields of a class are the keys it takes: type, default and the
metadata ``check`` (a function that returns what is wrong with a value, or "") say what is accepted.
"""

import difflib
import tomllib
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import attrs

Check = Callable[[Any], str]


def setting(default: Any, *, check: Check | None = None, secret: bool = False) -> Any:
    """A field that is a setting: its ``default``, a ``check``, and whether its value is kept out of sight."""
    metadata = {"check": check, "secret": secret}
    if isinstance(default, (dict, list)):
        return attrs.field(factory=lambda: type(default)(default), metadata=metadata)
    return attrs.field(default=default, metadata=metadata)


def at_least(low: float) -> Check:
    """A number not below ``low``."""
    return lambda value: "" if value >= low else f"must be at least {low:g}"


def between(low: float, high: float) -> Check:
    """A number from ``low`` to ``high``."""
    return lambda value: "" if low <= value <= high else f"must be between {low:g} and {high:g}"


def one_of(*allowed: str) -> Check:
    """One of some words."""
    words = ", ".join(map(repr, allowed))
    return lambda value: "" if value in allowed else f"must be one of {words}{nearest(value, allowed)}"


def nearest(name: object, known: Collection[str]) -> str:
    """`` (did you mean 'x'?)``, or nothing when no known name is near."""
    found = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f" (did you mean {found[0]!r}?)" if found else ""


@attrs.define
class Faults:
    """What is wrong: each a sentence with where it stands and what to do."""

    found: list[str] = attrs.field(factory=list)

    def add(self, where: str, what: str) -> None:
        """``where``: the file and key, ``what``: the rest of the sentence."""
        self.found.append(f"{where}: {what}")


def read_toml(path: Path, faults: Faults) -> dict[str, Any]:
    """The tables of a TOML file; empty, with a fault, when it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        faults.add(str(path), "the file does not exist")
    except OSError as error:
        faults.add(str(path), f"cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:
        faults.add(str(path), f"is not valid TOML: {error}")
    return {}


def keys_of(cls: type) -> dict[str, "attrs.Attribute[Any]"]:
    """The settings of an attrs class by key; what its constructor does not take is none."""
    return {field.alias or field.name: field for field in attrs.fields(cls) if field.init}


def build(cls: type, table: object, where: str, faults: Faults) -> Any:
    """An instance of the attrs class ``cls`` from ``table``, which stands at ``where`` (a dotted key, "" for the top).

    None, with faults, when something in it is wrong.
    """
    if not isinstance(table, Mapping):
        faults.add(where, f"must be a table, not {_called(table)}")
        return None
    before = len(faults.found)
    keys, hints = keys_of(cls), typing.get_type_hints(cls)
    values = {}
    for key, value in table.items():
        spot = f"{where}.{key}" if where else str(key)
        if key in keys:
            field = keys[key]
            values[key] = convert(hints.get(field.name, Any), value, spot, faults, field.metadata.get("check"))
        else:
            faults.add(spot, f"there is no such key{nearest(key, keys)}")
    for key, field in keys.items():
        if key not in table and field.default is attrs.NOTHING:
            faults.add(f"{where}.{key}" if where else key, "the key is missing")
    return None if len(faults.found) > before else cls(**values)


def convert(hint: Any, value: object, where: str, faults: Faults, check: Check | None = None) -> Any:
    """``value`` as the type ``hint``; a fault, and None, when it is none."""
    if isinstance(hint, type) and attrs.has(hint):
        return build(hint, value, where, faults)
    try:
        result = _coerce(hint, value)
    except ValueError:
        faults.add(where, f"must be {_wanted(hint)}, not {_called(value)}")
        return None
    wrong = check(result) if check is not None else ""
    if wrong:
        faults.add(where, f"{wrong}, not {value!r}" if wrong.startswith("must") else wrong)
    return result


def _coerce(hint: Any, value: object) -> Any:
    """ValueError when ``value`` is no ``hint``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return value
    if origin in (typing.Union, types.UnionType):
        return _any_of(arguments, value)
    if origin in (tuple, list, frozenset, set):
        if not isinstance(value, (list, tuple)):
            raise ValueError
        return origin(_coerce(arguments[0], item) for item in value)
    if origin is not None:
        if not isinstance(value, Mapping):
            raise ValueError
        return dict(value)
    return _scalar(hint, value)


def _any_of(hints: tuple[Any, ...], value: object) -> Any:
    for hint in hints:
        if hint is type(None) and value is None:
            return None
        try:
            return _coerce(hint, value)
        except ValueError:
            continue
    raise ValueError


def _scalar(hint: Any, value: object) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, float) and value - value != 0:
        raise ValueError  # inf and nan are no durations
    if hint is Path and isinstance(value, str):
        return Path(value).expanduser()
    if not isinstance(hint, type) or not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError
    return value


_WANTED = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
_CALLED = {**_WANTED, list: "a list", dict: "a table"}


def _wanted(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (tuple, list, frozenset, set):
        return f"a list, each item {_wanted(arguments[0])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_wanted(argument) for argument in arguments if argument is not type(None))
    return _WANTED.get(hint, "a table")


def _called(value: object) -> str:
    return _CALLED.get(type(value), type(value).__name__)


_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def from_text(hint: Any, text: str) -> object:
    """A text of the environment in the form TOML would give it. ValueError when it has none."""
    kind = typing.get_origin(hint) or hint
    if kind in (tuple, list, frozenset):
        return [part.strip() for part in text.split(",") if part.strip()]
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError
        return _BOOLEANS[text.lower()]
    return kind(text) if kind in (int, float) else text

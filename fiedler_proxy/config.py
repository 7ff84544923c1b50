"""From TOML, environment and flags to attrs classes: every fault is found, none stops the search for the next.

Owns reading and checking, knows no setting by name. The fields of a class are the keys it takes: type, default and the
metadata ``check`` (a function that returns what is wrong with a value, or "") say what is accepted.
"""

import collections.abc as abc
import difflib
import enum
import math
import re
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import attrs

from fiedler_proxy.headers import REDACTED

Check = Callable[[Any], str]


_SECRET = re.compile(r"(?:^|_)(?:api_?key|access_key|secret_key|secret|token|password|passphrase|credentials?)$")

_USER = re.compile(r"(?<=://)[^/?#\s]*@")


def setting(default: Any, *, check: Check | None = None, secret: bool | None = None, path: bool = False) -> Any:
    """A field that is a setting: its ``default`` and a ``check``.

    ``secret``: its value is kept out of sight; None asks its name. ``path``: a text that is relative to the
    configuration file; "" and "-" stand for none.
    """
    metadata = {"check": check or (_no_path if path else None), "secret": secret, "path": path}
    if isinstance(default, (dict, list)):
        return attrs.field(factory=lambda: type(default)(default), metadata=metadata)
    return attrs.field(default=default, metadata=metadata)


def _no_path(value: object) -> str:
    return "holds a NUL character, which no path may" if "\0" in str(value) else ""


def is_secret(field: "attrs.Attribute[Any]") -> bool:
    """Whether the value of ``field`` is kept out of sight: by what it declares, else by what it is called."""
    declared = field.metadata.get("secret")
    return bool(_SECRET.search(field.name)) if declared is None else bool(declared)


def redacted(value: Any) -> Any:
    """``value`` for people: the user information of URLs is taken out, the settings of an object come as a table."""
    if isinstance(value, str):
        return _USER.sub(f"{REDACTED}@", value)
    if attrs.has(type(value)):
        return visible(value)
    if isinstance(value, Mapping):
        return {key: redacted(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return tuple(sorted(map(redacted, value), key=str))
    return tuple(map(redacted, value)) if isinstance(value, (list, tuple)) else value


def visible(instance: object) -> dict[str, object]:
    """The settings of an attrs object for people: what is secret, and set, is redacted."""
    shown = {}
    for key, field in keys_of(type(instance)).items():
        value = getattr(instance, field.name)
        shown[key] = REDACTED if is_secret(field) and value else redacted(value)
    return shown


def absolute(cls: type, table: Mapping[str, object], base: Path) -> dict[str, object]:
    """``table`` with the paths of ``cls`` relative to ``base`` written in full, those of its inner tables too."""
    keys, hints, result = keys_of(cls), hints_of(cls), dict(table)
    for key, value in table.items():
        if key not in keys:
            continue
        if isinstance(value, Mapping) and isinstance(hints[key], type) and attrs.has(hints[key]):
            result[key] = absolute(hints[key], value, base)
        elif keys[key].metadata.get("path") and isinstance(value, str) and value not in ("", "-"):
            result[key] = _in_full(value, base)
    return result


def _in_full(text: str, base: Path) -> str:
    try:
        return str(base / Path(text).expanduser())
    except RuntimeError:
        return text  # whoever opens it says so


def at_least(low: float) -> Check:
    """A number not below ``low``."""
    return lambda value: "" if value >= low else f"must be at least {low}"


def between(low: float, high: float) -> Check:
    """A number from ``low`` to ``high``."""
    return lambda value: "" if low <= value <= high else f"must be between {low} and {high}"


def one_of(*allowed: str) -> Check:
    """One of some words."""
    words = ", ".join(map(repr, allowed))
    return lambda value: "" if value in allowed else f"must be one of {words}{nearest(value, allowed)}"


def nearest(name: object, known: Collection[str]) -> str:
    """`` (did you mean 'x'?)``, or nothing when no known name is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6) if isinstance(name, str) else []
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


def hints_of(cls: type) -> dict[str, Any]:
    """The type of each key. An annotation that cannot be read, as of a name for type checkers alone, is Any; so is one
    with a converter, which takes what it takes."""
    found = {}
    for key, field in keys_of(cls).items():
        annotation = Any if field.type is None or field.converter is not None else field.type
        holder = types.SimpleNamespace(__annotations__={"it": annotation})
        try:
            found[key] = typing.get_type_hints(holder, vars(sys.modules[cls.__module__]))["it"]
        except Exception:
            found[key] = Any
    return found


def build(cls: type, table: object, where: str, faults: Faults) -> Any:
    """An instance of the attrs class ``cls`` from ``table``, which stands at ``where`` (a dotted key, "" for the top).

    None, with faults, when something in it is wrong.
    """
    if not isinstance(table, Mapping):
        faults.add(where, f"must be a table, not {_called(table)}")
        return None
    before = len(faults.found)
    keys, hints = keys_of(cls), hints_of(cls)
    values = {}
    for key, value in table.items():
        spot = f"{where}.{key}" if where else str(key)
        if key in keys:
            data = keys[key].metadata
            values[key] = convert(hints[key], value, spot, faults, data.get("check"), secret=is_secret(keys[key]))
        else:
            faults.add(spot, f"there is no such key{nearest(key, keys)}")
    for key, field in keys.items():
        if key not in table and field.default is attrs.NOTHING:
            faults.add(f"{where}.{key}" if where else key, "the key is missing")
    return None if len(faults.found) > before else cls(**values)


def sound(cls: type, table: Mapping[str, object]) -> dict[str, object]:
    """What of ``table`` is without fault, so that the search for faults can go on with it."""
    keys, hints, kept = keys_of(cls), hints_of(cls), dict[str, object]()
    for key, value in table.items():
        if key not in keys:
            continue
        if isinstance(value, Mapping) and attrs.has(hints[key]):
            kept[key] = sound(hints[key], value)
            continue
        faults = Faults()
        convert(hints[key], value, key, faults, keys[key].metadata.get("check"))
        if not faults.found:
            kept[key] = value
    return kept


def convert(
    hint: Any, value: object, where: str, faults: Faults, check: Check | None = None, *, secret: bool = False
) -> Any:
    """``value`` as the type ``hint``; a fault, and None, when it is none. A ``secret`` is not quoted in it."""
    before = len(faults.found)
    result = _convert(hint, value, where, faults)
    if len(faults.found) > before:
        return None
    wrong = check(result) if check is not None else ""
    if wrong:
        faults.add(
            where,
            f"{wrong}, not {redacted(value)!r}" if wrong.startswith("must") and value != "" and not secret else wrong,
        )
        return None
    return result


_SEQUENCES: Mapping[Any, Any] = {
    tuple: tuple, list: list, set: set, frozenset: frozenset, abc.Sequence: tuple, abc.Collection: tuple,
    abc.Iterable: tuple, abc.Set: frozenset,
}  # fmt: skip
_MAPPINGS = (dict, abc.Mapping, abc.MutableMapping)


def _convert(hint: Any, value: object, where: str, faults: Faults) -> Any:
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if hint is Any or hint is object:
        return value
    if isinstance(hint, type) and attrs.has(hint):
        return build(hint, value, where, faults)
    if origin is typing.Annotated:
        return _convert(arguments[0], value, where, faults)
    if origin in (typing.Union, types.UnionType):
        return _any_of(hint, arguments, value, where, faults)
    if origin in _SEQUENCES and isinstance(value, (list, tuple)):
        return _sequence(_SEQUENCES[origin], arguments, value, where, faults)
    if origin in _MAPPINGS and isinstance(value, Mapping):
        inner = arguments[1] if len(arguments) == 2 else Any
        return {key: _convert(inner, item, f"{where}.{key}", faults) for key, item in value.items()}
    try:
        return _scalar(hint, value)
    except _Wrong as wrong:
        faults.add(where, str(wrong) or f"must be {_wanted(hint)}, not {_called(value)}")
    return None


class _Wrong(Exception):
    """What is wrong with a value, or nothing where its type says all."""


def _any_of(hint: Any, hints: tuple[Any, ...], value: object, where: str, faults: Faults) -> Any:
    given = [candidate for candidate in hints if candidate is not type(None)]
    if value is None and len(given) < len(hints):
        return None
    for candidate in sorted(given, key=lambda candidate: candidate is not type(value)):
        own = Faults()
        result = _convert(candidate, value, where, own)
        if not own.found:
            return result
    if len(given) == 1:
        return _convert(given[0], value, where, faults)
    tables = [candidate for candidate in given if isinstance(candidate, type) and attrs.has(candidate)]
    if len(tables) == 1 and isinstance(value, Mapping):
        return build(tables[0], value, where, faults)
    faults.add(where, f"must be {_wanted(hint)}, not {_called(value)}")
    return None


def _sequence(kind: Any, hints: tuple[Any, ...], value: abc.Sequence[object], where: str, faults: Faults) -> Any:
    if kind is tuple and hints and Ellipsis not in hints and len(hints) > 1:
        if len(hints) != len(value):
            faults.add(where, f"must be a list of {len(hints)} items, not of {len(value)}")
            return None
        each = hints
    else:
        each = (hints[0] if hints else Any,) * len(value)
    items = [
        _convert(hint, item, f"{where}[{place}]", faults)
        for place, (hint, item) in enumerate(zip(each, value, strict=True))
    ]
    try:
        return kind(items)
    except TypeError:
        faults.add(where, "must be a list of plain values")
        return None


def _scalar(hint: Any, value: object) -> Any:
    """_Wrong when ``value`` is no ``hint``."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise _Wrong("must be a number of at most 64 bits")
    if typing.get_origin(hint) is typing.Literal:
        return _choice(value, {choice: choice for choice in typing.get_args(hint)})
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _choice(value, {member.value: member for member in hint})
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        raise _Wrong(f"must be a number that is finite, not {value}")
    if hint is Path and isinstance(value, str):
        return _path(value)
    if not isinstance(hint, type) or not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise _Wrong
    return value


def _choice(value: object, choices: Mapping[Any, Any]) -> Any:
    for given, meant in choices.items():
        if given == value and type(given) is type(value):
            return meant
    words = ", ".join(map(repr, choices))
    said = repr(value) if isinstance(value, str) else _called(value)
    raise _Wrong(f"must be one of {words}{nearest(value, [str(given) for given in choices])}, not {said}")


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise _Wrong(f"must be a path, and nobody's home is known for {text!r}; write it in full") from None


_WANTED = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
_CALLED = {**_WANTED, list: "a list", tuple: "a list", dict: "a table"}


def _wanted(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in _SEQUENCES:
        return f"a list, each item {_wanted(arguments[0])}" if arguments else "a list"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_wanted(argument) for argument in arguments if argument is not type(None))
    if origin in _MAPPINGS or (isinstance(hint, type) and attrs.has(hint)):
        return "a table"
    return _WANTED.get(hint, f"of the type {getattr(hint, '__name__', hint)}")


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

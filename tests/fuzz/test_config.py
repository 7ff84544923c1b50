"""Whatever a configuration says, there is a gateway or one SettingsError, each of whose faults says where to look."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fiedler_proxy.app import load as load_fiedler
from fiedler_proxy.chain import Chain
from fiedler_proxy.config import keys_of
from fiedler_proxy.effective import effective
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.settings import TABLES, Document, Settings
from kgb_gateway.app import create_app, load
from kgb_gateway.compose import compose_chain
from kgb_gateway.settings import KGB

LINKS = ["auth", "request_id", "access_log", "guard", "health", "provider_route", "fiedler"]
LINK_KEYS = ["keys_file", "required", "path", "max_pending", "hosts", "origins", "ready", "prefixes"]
TELLING = ["127.0.0.1", "0.0.0.0", "::", "https://x", "http://[", "http://localhost:8089", "unix:/x", "unix:x", "a:b", "",
           "https://u:p@h", "~nobody-of-that-name", "\0", "*", "*.x", "a" * 300, "auto", "always", "never", "/", "/x?y"]  # fmt: skip


class Long:
    """A whole number that has more digits than Python would print."""

    def __repr__(self) -> str:
        return "0x" + "f" * 5000


NAMES = st.text(max_size=6)
SCALARS = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.integers(0, 70000)
    | st.just(Long())
    | st.floats()
    | st.dates()
    | st.sampled_from(TELLING)
    | st.text(max_size=8)
)
KEYS = st.sampled_from([*(key for table in TABLES.values() for key in keys_of(table)), *LINK_KEYS]) | NAMES
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=5
)
PROVIDER = st.dictionaries(
    st.sampled_from(["like", "url", "place", "dialect", "keys", "names"]),
    VALUES
    | st.sampled_from(["openai", "sigv4", "none", "http://x"])
    | st.lists(st.sampled_from(["env:A", "aws:b", "sk-1"])),
    max_size=4,
)
ROUTE = st.dictionaries(
    st.sampled_from(["upstreams", "prefix", "models", "weights", "retry", "pick", "aliases", "headers", "native"]),
    VALUES
    | st.lists(st.sampled_from(["base", "openai", "x", "429", "connect"]))
    | st.sampled_from(["/x", "weighted", "gemini"]),
    max_size=5,
)
HALF_RIGHT = {
    "port": st.integers(-1, 70000),
    "host": st.sampled_from(["localhost", "::1", "0.0.0.0", ""]),
    "chain": st.lists(st.sampled_from([*LINKS, "atuh", "a:b", "os:path", ":", ""]) | NAMES, max_size=4),
    "upstream": st.sampled_from(TELLING) | st.dictionaries(st.sampled_from(["url", "name", "ca_file"]), VALUES),
    "timeouts": st.dictionaries(st.sampled_from(["connect", "idle", "drain"]), VALUES, max_size=2),
    "limits": st.dictionaries(st.sampled_from(["request_body", "queue"]), VALUES, max_size=2),
    "tls": st.dictionaries(st.sampled_from(["cert", "key"]), st.sampled_from(["", "x", "/", "\0"])),
    "slot": st.sampled_from(["blue", "green", "s", ""]) | NAMES,
    "providers": st.dictionaries(
        st.sampled_from(["openai", "bedrock", "azure", "x"]) | NAMES, PROVIDER | VALUES, max_size=3
    ),
    "slots": st.dictionaries(
        st.sampled_from(["s", "green", "blue"]) | NAMES, st.lists(ROUTE | VALUES, max_size=3) | VALUES, max_size=2
    ),
    "preflight": st.lists(st.dictionaries(st.sampled_from(["path", "key", "body"]), VALUES), max_size=2) | VALUES,
    "shadow": st.dictionaries(st.sampled_from(["slot", "share", "tokens"]), VALUES, max_size=2) | VALUES,
    "links": st.dictionaries(st.sampled_from(LINKS) | NAMES, st.dictionaries(KEYS, VALUES, max_size=2), max_size=2),
}
DOCUMENTS = st.dictionaries(KEYS, VALUES, max_size=4) | st.fixed_dictionaries({}, optional=HALF_RIGHT)

TEXTS = st.sampled_from([text for text in TELLING if "\0" not in text]) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8
)
ENVIRONMENTS = st.dictionaries(st.sampled_from([*KGB.variables, *KGB.upstream_variables]), TEXTS, max_size=2)
FLAGS = st.dictionaries(
    st.sampled_from(["host", "port", "upstream", "chain", "timeouts.idle", "links"]), VALUES, max_size=2
)

WHERE = re.compile(rf"(?:.+\.toml|environment \w+|flag --[\w.-]+|{'|'.join(keys_of(Document))})\b")


def toml(value: Any) -> str:
    """``value`` as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(str(key))} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(character):08x}" for character in value) + '"'
    return value.isoformat() if hasattr(value, "isoformat") else repr(value)


def document(table: Mapping[str, Any]) -> str:
    return "".join(f"{toml(key)} = {toml(value)}\n" for key, value in table.items())


def check_faults(faults: Iterable[str]) -> None:
    faults = list(faults)
    assert faults
    for fault in faults:
        assert WHERE.match(fault), fault


def check_good(found: Settings, chain: Chain) -> None:
    """What is in force can be written, and read again."""
    text = effective(found, chain)
    assert set(tomllib.loads(text)) <= set(keys_of(Document))
    assert {"guard", "health"} <= {entry.name for entry in chain.entries}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configuration") / "gateway.toml"


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DOCUMENTS, ENVIRONMENTS, FLAGS)
@example({"timeouts": {"idle": Long()}}, {}, {})
@example({"links": {"auth": {"keys_file": "~nobody-of-that-name"}}}, {}, {})
@example({"links": {"auth": {"keys_file": "\0"}}}, {}, {})
@example({"links": {"a:b": Long()}}, {}, {})
@example({"upstream": {"ca_file": "\0", "url": "https://x"}}, {}, {})
@example({"tls": {"cert": "\0"}}, {}, {})
@example({"chain": ["fiedler", "auth", "fiedler"]}, {"KGB_HOST": "0.0.0.0"}, {})
@example({"upstream": 1}, {"KGB_TARGET_URL": "http://x"}, {"upstream": {"name": "n"}})
@example({"links": 1}, {}, {"links": {"auth": 1}})
def test_any_document(place: Path, table: dict[str, Any], environ: dict[str, str], flags: dict[str, Any]) -> None:
    try:
        text = document(table)
        place.write_text(text, encoding="utf-8")
        tomllib.loads(text)
    except ValueError:
        return  # a lone surrogate, or a key twice: no TOML
    try:
        found = load({**flags, "config": str(place)}, environ)
        chain = compose_chain(found)
        app = create_app(found)
    except SettingsError as error:
        check_faults(error.faults)
    else:
        check_good(found, chain)
        assert isinstance(app, web.Application)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DOCUMENTS)
def test_any_document_of_fiedler(place: Path, table: dict[str, Any]) -> None:
    place.write_text(document({key: value for key, value in table.items() if key < "\ud800"}), "utf-8", "replace")
    try:
        load_fiedler({"config": str(place)})
    except SettingsError as error:
        check_faults(error.faults)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text(alphabet='ab[]{}=".\n#1', max_size=40).map(str.encode))
def test_any_bytes(place: Path, content: bytes) -> None:
    place.write_bytes(content)
    try:
        load({"config": str(place)})
    except SettingsError as error:
        check_faults(error.faults)

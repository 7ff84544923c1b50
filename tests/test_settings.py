"""What the configuration may say: sources and their order, faults in their words, what is in force."""

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fiedler_proxy.config import Faults, keys_of
from fiedler_proxy.effective import effective
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.settings import FIEDLER, TABLES, Document, Program, Settings, is_loopback, read
from fiedler_proxy.upstream import PoolLimits, Timeouts, Upstream
from kgb_gateway.settings import KGB

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "gateway.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def attempt(
    program: Program, flags: Mapping[str, object], environ: Mapping[str, str]
) -> tuple[Settings | None, list[str]]:
    faults = Faults()
    draft = read(program, flags, environ, faults)
    return draft.settings, faults.found


def good(
    flags: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None, program: Program = KGB
) -> Settings:
    found, faults = attempt(program, flags or {}, environ or {})
    assert not faults
    assert found is not None
    return found


def faults_of(
    flags: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None, program: Program = KGB
) -> list[str]:
    _, faults = attempt(program, flags or {}, environ or {})
    return faults


# Defaults.


def test_nothing_is_needed() -> None:
    found = good()
    assert (found.host, found.port, found.upstream.url) == ("127.0.0.1", 8089, "https://api.anthropic.com")
    assert found.document.chain == ("request_id", "access_log", "dewey_tap", "auth", "fiedler")
    assert found.document.instance == "a"
    assert found.data_dir == Path("~/.local/share/kgb").expanduser()
    assert found.warnings == ()
    assert found.sources == {}


def test_fiedler_has_a_port_and_a_chain_of_its_own() -> None:
    found = good(program=FIEDLER)
    assert (found.port, found.document.chain) == (8081, ("fiedler_key", "provider_route"))


def test_defaults_fit_long_thinking() -> None:
    upstream = good().upstream
    assert upstream.timeouts == Timeouts(10.0, 900.0, 600.0)
    assert upstream.timeouts.first_byte >= 600
    assert upstream.limits == PoolLimits(8192, 1024, 30.0, 30.0, 256)


def test_the_data_directory_follows_the_desktop_standard(tmp_path: Path) -> None:
    assert good(environ={"XDG_DATA_HOME": str(tmp_path)}).data_dir == tmp_path / "kgb"
    assert good(environ={"XDG_DATA_HOME": "relative"}).data_dir == Path("~/.local/share/kgb").expanduser()


# Flags over environment over file over defaults.

PLACES: dict[str, tuple[str, str, object, Callable[[Settings], object]]] = {
    # key: (variable, its text, the value of flag, what is in force)
    "host": ("KGB_HOST", "127.0.0.2", "127.0.0.3", lambda found: found.host),
    "port": ("KGB_PORT", "2", 3, lambda found: found.port),
    "data_dir": ("KGB_DATA_DIR", "/two", "/three", lambda found: str(found.data_dir)),
    "instance": ("KGB_INSTANCE", "two", "three", lambda found: found.document.instance),
    "upstream": ("KGB_TARGET_URL", "http://two", "http://three", lambda found: found.upstream.url),
}
IN_FILE = 'host = "127.0.0.1"\nport = 1\ndata_dir = "/one"\ninstance = "one"\nupstream = "http://one"\n'
ONE = {"host": "127.0.0.1", "port": 1, "data_dir": "/one", "instance": "one", "upstream": "http://one"}


@pytest.mark.parametrize("key", PLACES)
def test_precedence(key: str, write: Write) -> None:
    variable, text, flag, seen = PLACES[key]
    path = write(IN_FILE)
    two: object = int(text) if key == "port" else text
    in_file = good({"config": str(path)})
    assert (seen(in_file), in_file.sources[key]) == (ONE[key], str(path))
    in_environment = good({"config": str(path)}, {variable: text})
    assert (seen(in_environment), in_environment.sources[key]) == (two, f"environment {variable}")
    by_flag = good({"config": str(path), key: flag}, {variable: text})
    assert (seen(by_flag), by_flag.sources[key]) == (flag, f"flag --{key.replace('_', '-')}")


@pytest.mark.parametrize("program", [KGB, FIEDLER], ids=lambda program: program.name)
def test_the_file_is_named_by_flag_or_environment(program: Program, write: Write, tmp_path: Path) -> None:
    path = write("port = 1\n")
    other = tmp_path / "other.toml"
    other.write_text("port = 2\n")
    assert good(environ={program.config_variable: str(path)}, program=program).port == 1
    assert good({"config": str(other)}, {program.config_variable: str(path)}, program).port == 2


def test_fiedler_reads_its_own_variables_alone() -> None:
    environ = {
        "FIEDLER_HOST": "127.0.0.9",
        "FIEDLER_PORT": "9",
        "FIEDLER_UPSTREAM": "http://f",
        "KGB_PORT": "8",
        "KGB_TARGET_URL": "http://k",
        "ANTHROPIC_BASE_URL": "http://a",
    }
    found = good(environ=environ, program=FIEDLER)
    assert (found.host, found.port, found.upstream.url) == ("127.0.0.9", 9, "http://f")


def test_an_empty_variable_sets_nothing() -> None:
    environ = dict.fromkeys([*KGB.variables, *KGB.upstream_variables, KGB.config_variable], "")
    assert good(environ=environ) == good()


def test_what_the_environment_names_is_read_as_what_it_is() -> None:
    assert good(environ={"DEWEY_URL": "dewey+ws://host:9020"}).document.dewey_url == "dewey+ws://host:9020"


# The upstream in the environment.

ORDER = ("KGB_TARGET_URL", "ANTHROPIC_PROXY_URL", "ANTHROPIC_BASE_URL")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_upstream_variables_are_asked_in_order(count: int) -> None:
    environ = {name: f"http://{number}.example" for number, name in enumerate(ORDER) if number >= 3 - count}
    assert good(environ=environ).upstream.host == f"{3 - count}.example"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://api.anthropic.com/v1/messages", "https://api.anthropic.com"),
        ("http://fiedler:8081/v1/messages/", "http://fiedler:8081"),
        ("http://fiedler:8081/anthropic-proxy/v1/messages", "http://fiedler:8081/anthropic-proxy"),
        ("http://fiedler:8081/", "http://fiedler:8081"),
        (" http://fiedler:8081 ", "http://fiedler:8081"),
        ("http://fiedler:8081/v1/messages/batches", "http://fiedler:8081/v1/messages/batches"),
    ],
)
def test_a_trailing_messages_path_is_dropped(text: str, url: str) -> None:
    assert good(environ={"KGB_TARGET_URL": text}).upstream.url == url


@pytest.mark.parametrize(
    ("host", "url", "own"),
    [
        ("127.0.0.1", "http://127.0.0.1:8089", True),
        ("127.0.0.1", "http://localhost:8089/v1/messages", True),
        ("localhost", "http://127.0.0.1:8089", True),
        ("127.0.0.1", "http://[::1]:8089", True),
        ("0.0.0.0", "http://localhost:8089", True),
        ("::", "http://127.0.0.1:8089", True),
        ("10.0.0.1", "http://10.0.0.1:8089", True),
        ("10.0.0.1", "http://127.0.0.1:8089", False),
        ("127.0.0.1", "http://127.0.0.1:8081", False),
        ("127.0.0.1", "http://other:8089", False),
    ],
)
def test_a_variable_that_names_our_own_listener_is_ignored_with_a_warning(host: str, url: str, own: bool) -> None:
    found = good({"host": host}, {"ANTHROPIC_BASE_URL": url})
    assert (found.upstream.url == "https://api.anthropic.com") == own
    assert bool(found.warnings) == own
    if own:
        (warning,) = found.warnings
        assert warning == "the environment's ANTHROPIC_BASE_URL names this server's own listener and is ignored"


def test_what_is_ignored_makes_way_for_the_next_variable() -> None:
    environ = {"KGB_TARGET_URL": "http://localhost:9", "ANTHROPIC_BASE_URL": "http://next", "KGB_PORT": "9"}
    found = good(environ=environ)
    assert (found.upstream.url, len(found.warnings)) == ("http://next", 1)


def test_a_flag_spares_the_environment_a_look() -> None:
    environ = {"KGB_TARGET_URL": "http://localhost:8089", "ANTHROPIC_BASE_URL": "not a url"}
    found = good({"upstream": "http://flag"}, environ)
    assert (found.upstream.url, found.warnings) == ("http://flag", ())


def test_our_own_listener_is_no_upstream() -> None:
    (fault,) = faults_of({"upstream": "http://localhost:8089"})
    assert fault == (
        "flag --upstream: upstream: names this server's own listener, localhost:8089; set it to the provider's base URL"
    )


# The file.


def test_every_table(write: Write) -> None:
    path = write(
        """
        host = "localhost"
        port = 0
        chain = ["auth"]
        allowed_hosts = ["Gateway.Example"]
        via = "kgb"
        forwarded = true
        uvloop = "never"
        [upstream]
        url = "https://one.example/base"
        name = "one"
        server_name = "two.example"
        [timeouts]
        connect = 1
        first_byte = 2
        idle = 3
        upstream_keepalive = 4
        [limits]
        connections = 5
        queue = 6
        queue_timeout = 7
        idle = 8
        [health]
        health = ""
        [links.auth]
        required = "never"
        """
    )
    found = good({"config": str(path)})
    assert (found.document.via, found.document.forwarded, found.document.uvloop) == ("kgb", True, "never")
    upstream = found.upstream
    assert upstream == Upstream("one", "https", "one.example", 443, base_path="/base", server_name="two.example",
                                timeouts=Timeouts(1.0, 2.0, 3.0), limits=PoolLimits(5, 6, 7.0, 4.0, 8))  # fmt: skip
    assert found.document.health.health == ""
    assert found.document.links == {"auth": {"required": "never"}}


def test_an_upstream_in_short() -> None:
    assert good({"upstream": "unix:/run/x"}).upstream == attrs.evolve(good().upstream, scheme="http", host="localhost", port=80, unix="/run/x")  # fmt: skip


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("prot = 1", "prot: there is no such key (did you mean 'port'?)"),
        ("[timeout]\nidle = 1", "timeout: there is no such key (did you mean 'timeouts'?)"),
        ("[timeouts]\nconect = 1", "timeouts.conect: there is no such key (did you mean 'connect'?)"),
        ("[timeouts]\nidle = -1", "timeouts.idle: must be at least 0, not -1"),
        ("[timeouts]\nkeepalive = 0", "timeouts.keepalive: must be at least 1, not 0"),
        ("[limits]\nconnections = 0", "limits.connections: must be at least 1, not 0"),
        ("[limits]\nheader_field = 10", "limits.header_field: must be between 1024 and 1048576, not 10"),
        ("port = 70000", "port: must be between 0 and 65535, not 70000"),
        ('port = "8089"', "port: must be a whole number, not a string"),
        ('chain = "auth"', "chain: must be a list, each item a string, not a string"),
        ("links = 1", "links: must be a table, not a whole number"),
        ('uvloop = "nevr"', "uvloop: must be one of 'auto', 'always', 'never' (did you mean 'never'?), not 'nevr'"),
        ('instance = "a b"', "instance: must be a name of letters, digits, '-', '_' and '.', not 'a b'"),
        ('[health]\nlive = "x"', "health.live: must begin with / (or be empty to switch it off), not 'x'"),
        (
            'upstream = "api.anthropic.com"',
            "upstream.url: 'api.anthropic.com' is not an http(s) base URL; write https://host, http://host:port or unix:/path",
        ),
        (
            'upstream = "https://user:hush@host"',
            "upstream.url: the URL of 'host' carries user information; give the credential in a header instead",
        ),
        ("[upstream]\nnam = 'x'", "upstream.nam: there is no such key (did you mean 'name'?)"),
    ],
)
def test_a_fault_of_the_file_names_file_and_key(write: Write, text: str, fault: str) -> None:
    path = write(text)
    assert faults_of({"config": str(path)}) == [f"{path}: {fault}"]


@pytest.mark.parametrize(
    ("environ", "fault"),
    [
        ({"KGB_PORT": "abc"}, "environment KGB_PORT: port: 'abc' cannot be read as port"),
        ({"KGB_PORT": "99999"}, "environment KGB_PORT: port: must be between 0 and 65535, not 99999"),
        (
            {"ANTHROPIC_BASE_URL": "localhost:1"},
            "environment ANTHROPIC_BASE_URL: upstream.url: 'localhost:1' is not an http(s) base URL; write https://host, http://host:port or unix:/path",
        ),
    ],
)
def test_a_fault_of_the_environment_names_the_variable(environ: dict[str, str], fault: str) -> None:
    assert faults_of(environ=environ) == [fault]


def test_faults_of_every_source_come_together(write: Write) -> None:
    path = write("prot = 1\n[timeouts]\nidle = -1\n")
    found = faults_of({"config": str(path), "instance": ""}, {"KGB_PORT": "abc"})
    sources = sorted(fault.partition(": ")[0] for fault in found)
    assert sources == sorted(["environment KGB_PORT", "flag --instance", str(path), str(path)])


def test_a_file_that_cannot_be_read_hides_no_other_fault(tmp_path: Path) -> None:
    found = faults_of({"config": str(tmp_path / "none.toml"), "port": -1})
    assert found == [
        f"{tmp_path / 'none.toml'}: the file does not exist",
        "flag --port: port: must be between 0 and 65535, not -1",
    ]


# Loopback.


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LOCALHOST."])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    assert good({"host": host}).loopback


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "gateway", "0", "127.1", "localhost.example", "localhost.localdomain"]
)
def test_everything_else_is_not(host: str) -> None:
    assert not is_loopback(host)
    assert not good({"host": host}).loopback


# TLS of the listener.


def test_the_listeners_certificate(write: Write, tmp_path: Path) -> None:
    assert good().ssl_context() is None
    certificate = trustme.CA().issue_cert("localhost")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(cert)
    certificate.private_key_pem.write_to_path(key)
    assert good({"config": write(f'[tls]\ncert = "{cert}"\nkey = "{key}"\n')}).ssl_context() is not None
    certificate.private_key_and_cert_chain_pem.write_to_path(cert)
    assert good({"config": write(f'[tls]\ncert = "{cert}"\n')}).ssl_context() is not None


def test_a_certificate_that_cannot_be_used(write: Write) -> None:
    found = good({"config": write('[tls]\ncert = "/nowhere/cert.pem"\n')})
    with pytest.raises(SettingsError, match=r"tls\.cert: '/nowhere/cert\.pem' cannot be used: No such file"):
        found.ssl_context()


# What is in force.


def test_the_effective_configuration_is_toml_that_says_the_same(write: Write) -> None:
    path = write('chain = ["auth"]\n[timeouts]\nidle = 7\n[upstream]\nurl = "https://u.example"\nname = "u"\n')
    found = good({"config": str(path), "port": 1234}, {"KGB_HOST": "localhost"})
    text = effective(found)
    again = write(text)
    read_again = good({"config": str(again)})
    assert read_again.document == attrs.evolve(found.document, upstream=read_again.document.upstream, links={})
    assert read_again.upstream == found.upstream
    assert set(tomllib.loads(text)) == set(keys_of(Document)) - {"links"}


def test_every_value_says_where_it_comes_from(write: Write) -> None:
    path = write("[timeouts]\nidle = 7\n")
    lines = effective(good({"config": str(path), "port": 1234}, {"KGB_HOST": "localhost"})).split("\n")
    assert 'host = "localhost"  # environment KGB_HOST' in lines
    assert "port = 1234  # flag --port" in lines
    assert f"idle = 7.0  # {path}" in lines
    assert "connect = 10.0  # default" in lines
    assert 'url = "https://api.anthropic.com"  # default' in lines
    assert all("  # " in line for line in lines if " = " in line)


def test_credentials_are_not_shown() -> None:
    text = effective(good(environ={"DEWEY_URL": "dewey+ws://user:hush@host:9020"}))
    assert "hush" not in text
    assert '"dewey+ws://[REDACTED]@host:9020"' in text


# Whatever is given, there are settings or faults.

KEYS = st.sampled_from([key for table in TABLES.values() for key in keys_of(table)]) | st.text(max_size=6)
SCALARS = (
    st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(
        ["127.0.0.1", "0.0.0.0", "https://x", "http://[", "unix:/x", "https://u:p@h", "a:b", "\0", "auth"]
    )
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(str(key))} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(character):08x}" for character in value) + '"'
    return repr(value)


TEXTS = st.text(max_size=12).filter(lambda text: "\0" not in text)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(KEYS, VALUES, max_size=6),
    st.dictionaries(st.sampled_from([*KGB.variables, *KGB.upstream_variables]), TEXTS, max_size=3),
)
def test_any_file_and_environment(write: Write, table: dict[str, Any], environ: dict[str, str]) -> None:
    try:
        path = write("\n".join(f"{toml(key)} = {toml(value)}" for key, value in table.items()))
    except UnicodeEncodeError:
        return
    found, faults = attempt(KGB, {"config": path}, environ)
    assert (found is None) <= bool(faults)
    if found is not None and not faults:
        tomllib.loads(effective(found))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text(alphabet='ab[]{}=".\n#1', max_size=40).map(str.encode))
def test_any_bytes_for_a_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.toml"
    path.write_bytes(content)
    found, faults = attempt(KGB, {"config": str(path)}, {})
    assert (found is None) <= bool(faults)


# Keys of one table from several sources, paths, and what can never be meant.


def test_what_the_environment_leaves_out_of_a_table_stays_the_files(write: Write) -> None:
    path = write('[upstream]\nurl = "https://one.example"\nca_file = "/one.pem"\nname = "one"\n')
    found = good({"config": str(path)}, {"KGB_TARGET_URL": "https://two.example"})
    assert (found.upstream.host, found.upstream.ca_file, found.upstream.name) == ("two.example", "/one.pem", "one")
    lines = effective(found).split("\n")
    assert 'url = "https://two.example"  # environment KGB_TARGET_URL' in lines
    assert f'ca_file = "/one.pem"  # {path}' in lines


@pytest.mark.parametrize("flags", [{"timeouts.idle": 7}, {"timeouts": {"idle": 7}}])
def test_a_flag_sets_one_key_of_a_table(write: Write, flags: dict[str, object]) -> None:
    found = good({"config": str(write("[timeouts]\nidle = 1\nconnect = 2\n")), **flags})
    assert (found.document.timeouts.idle, found.document.timeouts.connect) == (7.0, 2.0)
    assert found.document.timeouts.first_byte == 900.0


def test_a_table_of_a_link_is_laid_over_key_by_key(write: Write) -> None:
    path = write('[links."a.b:C"]\none = 1\ntwo = 2\n')
    found = good({"config": str(path), "links": {"a.b:C": {"two": 3}}})
    assert found.document.links == {"a.b:C": {"one": 1, "two": 3}}


def test_a_table_and_its_short_form_are_one(write: Write) -> None:
    path = write('upstream = "https://one.example"\n')
    assert good({"config": str(path), "upstream.name": "two"}).upstream.name == "two"
    assert good({"config": str(path), "upstream.name": "two"}).upstream.host == "one.example"


def test_a_flags_upstream_is_credited_to_the_flag(write: Write) -> None:
    path = write('[upstream]\nurl = "https://one.example"\n')
    text = effective(good({"config": str(path), "upstream": "https://two.example"}))
    assert 'url = "https://two.example"  # flag --upstream' in text


@pytest.mark.parametrize("key", ["data_dir", "ca_file", "cert"])
def test_relative_paths_begin_at_the_file(write: Write, tmp_path: Path, key: str) -> None:
    path = write('data_dir = "x"\n[upstream]\nca_file = "x"\n[tls]\ncert = "x"\n')
    found = good({"config": str(path)})
    paths: dict[str, Any] = {
        "data_dir": found.data_dir,
        "ca_file": found.upstream.ca_file,
        "cert": found.document.tls.cert,
    }
    assert Path(paths[key]) == tmp_path / "x"


def test_no_credential_stands_in_a_fault() -> None:
    (fault,) = faults_of({"upstream": "https//user:hush@host"})
    assert "hush" not in fault


def test_a_health_path_has_no_query(write: Write) -> None:
    assert faults_of({"config": write('[health]\nready = "/ready?x"\n')})


@pytest.mark.parametrize("text", ['allowed_origins = ["https://page.example/"]', 'allowed_hosts = ["http://host"]'])
def test_a_list_entry_that_can_never_match(write: Write, text: str) -> None:
    assert faults_of({"config": write(text)})

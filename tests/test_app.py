"""From settings to an application: one message for every fault, what is in force, and that it reaches the requests."""

import argparse
import ssl
import tomllib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import pytest
import trustme
from aiohttp import web
from aiohttp.test_utils import TestClient
from cryptography.hazmat.primitives import serialization

from fiedler_proxy.app import load as load_fiedler
from fiedler_proxy.chain import Chain
from fiedler_proxy.config import setting
from fiedler_proxy.effective import effective
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.lifecycle import GATEWAY
from fiedler_proxy.server import Handler
from fiedler_proxy.serving import listen, urls
from fiedler_proxy.settings import Settings
from fiedler_proxy.testing import RawClient, ScriptedUpstream, Stall, respond, start_app
from kgb_gateway.app import create_app, load
from kgb_gateway.commands import keys
from kgb_gateway.compose import compose_chain
from kgb_gateway.keys_edit import create_key

HERE = __name__
Client = TestClient[web.Request, web.Application]
MakeClient = Callable[[web.Application], Awaitable[Client]]
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "gateway.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def faults_of(flags: Mapping[str, object], environ: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        load(flags, environ)
    return list(raised.value.faults)


@web.middleware
@attrs.frozen
class Odd:
    """A link with settings of many kinds."""

    api_key: str = ""
    names: frozenset[str] = frozenset()
    weights: Mapping[str, float] = setting({})
    maybe: int | None = None
    note: str = 'a "quoted"\\ note\n\x7f'
    place: Path = Path("/x")
    url: str = ""
    declared: str = setting("", secret=True)
    shown_token: str = setting("", secret=False)

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return await handler(request)


ODD = f"{HERE}:Odd"


# One message for everything.


def test_faults_of_file_environment_flags_chain_listener_and_tls_are_one_message(write: Write, tmp_path: Path) -> None:
    path = write(
        """
        prot = 1
        allowed_hosts = ["http://a"]
        chain = ["acces_log", "auth"]
        [upstream]
        url = "https://api.example"
        ca_file = "none.pem"
        [tls]
        cert = "none.pem"
        [timeouts]
        idle = "1s"
        [links.health]
        helth = "/h"
        [links.gaurd]
        """
    )
    found = faults_of({"config": str(path), "instance": ""}, {"KGB_HOST": "0.0.0.0", "KGB_PORT": "x"})
    pem = tmp_path / "none.pem"
    assert sorted(fault[:130].partition("; installed")[0] for fault in found) == sorted(
        fault[:130]
        for fault in (
            "environment KGB_PORT: port: 'x' cannot be read as port",
            "flag --instance: instance: must not be empty",
            f"{path}: prot: there is no such key (did you mean 'port'?)",
            f"{path}: allowed_hosts: 'http://a' is no host name; write it without scheme and port, '*.example.org' for all below, or '*'",
            f"{path}: timeouts.idle: must be a number, not a string",
            f"{path}: chain: no link is called 'acces_log' (did you mean 'access_log'?)",
            f"{path}: links.health.helth: there is no such key (did you mean 'health'?)",
            f"{path}: links.gaurd: the chain has no link of that name (did you mean 'guard'?)",
            f"{path}: tls.cert: {str(pem)!r} cannot be used: No such file or directory",
            f"{path}: upstream default: ca_file {str(pem)!r} cannot be used: [Errno 2] No such file or directory",
            "environment KGB_HOST: host: '0.0.0.0' can be reached from other machines and nobody would be asked for a key; make a key with `kgb keys create NAME`",
        )
    )


def test_a_faulty_link_makes_no_other_fault(write: Write) -> None:
    path = write('host = "0.0.0.0"\n[links.auth]\nrequird = "always"\n')
    assert faults_of({"config": str(path)}) == [
        f"{path}: links.auth.requird: there is no such key (did you mean 'required'?)"
    ]


def test_a_faulty_setting_makes_no_other_fault(write: Write, tmp_path: Path) -> None:
    create_key(tmp_path / "keys.json", "somebody")
    path = write('host = "0.0.0.0"\nprot = 1\n[links.auth]\nrequired = "always"\n')
    assert faults_of({"config": str(path)}) == [f"{path}: prot: there is no such key (did you mean 'port'?)"]


@pytest.mark.parametrize("text", [None, "= x"], ids=["missing", "no toml"])
def test_a_file_that_cannot_be_read_is_not_guessed_at(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "gateway.toml"
    if text is not None:
        path.write_text(text)
    (fault,) = faults_of({"config": str(path)}, {"KGB_HOST": "0.0.0.0"})
    assert fault.startswith(f"{path}: ")


def test_what_a_link_says_names_the_file_too(write: Write) -> None:
    path = write('[links.auth]\nrequired = "offen"\n')
    (fault,) = faults_of({"config": str(path)})
    assert fault.startswith(f"{path}: links.auth.required is 'offen'")


def test_a_table_by_the_whole_name_of_a_link_names_the_file(write: Write) -> None:
    path = write(f'chain = ["{ODD}"]\n[links."{ODD}"]\nmaybe = "x"\n')
    assert faults_of({"config": str(path)}) == [f"{path}: links.{ODD}.maybe: must be a whole number, not a string"]


def test_a_key_with_a_colon_names_the_file(write: Write) -> None:
    path = write('"a:b" = 1\n')
    assert faults_of({"config": str(path)}) == [f"{path}: a:b: there is no such key"]


def test_fiedler_comes_once() -> None:
    (fault,) = faults_of({"chain": ("fiedler", "fiedler")})
    assert fault == "flag --chain: chain: 'fiedler' stands in the chain more than once"


def test_fiedler_is_meant_by_names_like_it() -> None:
    (fault,) = faults_of({"chain": ("fiedlr",)})
    assert "(did you mean 'fiedler'?)" in fault
    with pytest.raises(SettingsError) as raised:
        load_fiedler({"chain": ("fiedlr",)})
    assert "(did you mean 'fiedler'?)" not in str(raised.value)


# The listener's certificate and the upstream's authorities.


@pytest.fixture(scope="module")
def certificate() -> trustme.LeafCert:
    return trustme.CA().issue_cert("localhost")


def test_a_key_without_certificate(write: Write) -> None:
    path = write('[tls]\nkey = "key.pem"\n')
    assert faults_of({"config": str(path)}) == [
        f"{path}: tls.key: is given without tls.cert; give the certificate too, or neither"
    ]


def test_a_key_that_is_not_there(write: Write, tmp_path: Path, certificate: trustme.LeafCert) -> None:
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    path = write('[tls]\ncert = "cert.pem"\nkey = "none.pem"\n')
    (fault,) = faults_of({"config": str(path)})
    assert fault == f"{path}: tls.key: {str(tmp_path / 'none.pem')!r} cannot be used: No such file or directory"


def test_a_key_of_another_certificate(write: Write, tmp_path: Path, certificate: trustme.LeafCert) -> None:
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(tmp_path / "key.pem")
    path = write('[tls]\ncert = "cert.pem"\nkey = "key.pem"\n')
    (fault,) = faults_of({"config": str(path)})
    assert fault.startswith(f"{path}: tls.cert: {str(tmp_path / 'cert.pem')!r} cannot be used: ")


def test_nobody_is_asked_for_a_passphrase(write: Write, tmp_path: Path, certificate: trustme.LeafCert) -> None:
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"hush"),
    )
    (tmp_path / "key.pem").write_bytes(encrypted)
    path = write('[tls]\ncert = "cert.pem"\nkey = "key.pem"\n')
    (fault,) = faults_of({"config": str(path)})
    assert "its key is encrypted, and nobody is there to type the passphrase" in fault


def test_authorities_that_are_none(write: Write, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    path = write('[upstream]\nurl = "https://api.example"\nca_file = "ca.pem"\n')
    (fault,) = faults_of({"config": str(path)})
    assert fault.startswith(f"{path}: upstream default: ca_file {str(tmp_path / 'ca.pem')!r} cannot be used: ")


async def test_a_listener_with_a_certificate(write: Write, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "one.pem")
    settings = load({"config": str(write('port = 0\n[tls]\ncert = "one.pem"\n'))})
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    runner = web.AppRunner(create_app(settings))
    await runner.setup()
    try:
        await listen(runner, settings)
        (url,) = urls(runner, settings)
        async with aiohttp.ClientSession() as session, session.get(f"{url}/healthz", ssl=trusting) as answer:
            assert (answer.status, url[:8]) == (200, "https://")
    finally:
        await runner.cleanup()


# What is in force.


def in_force(settings: Settings) -> tuple[str, Chain]:
    chain = compose_chain(settings)
    return effective(settings, chain), chain


FULL = f"""
host = "localhost"
chain = ["request_id", "auth", "{ODD}", "fiedler"]
allowed_hosts = ["gateway.example"]
data_dir = "data"
[upstream]
url = "https://api.example:8443/base"
server_name = "other.example"
[timeouts]
idle = 7
[health]
live = ""
[links.Odd]
names = ["b", "a"]
weights = {{ one = 1, "t w o" = 2.5 }}
[links.auth]
keys_file = "sub/keys.json"
"""


def test_what_is_in_force_is_toml_that_comes_to_the_same(write: Write, tmp_path: Path) -> None:
    settings = load({"config": str(write(FULL)), "port": 1234}, {"KGB_INSTANCE": "b"})
    text, chain = in_force(settings)
    again = tmp_path / "elsewhere.toml"
    again.write_text(text, encoding="utf-8")
    reread = load({"config": str(again)})
    assert attrs.evolve(reread.document, links={}) == attrs.evolve(settings.document, links={})
    assert reread.upstream == settings.upstream
    text_again, chain_again = in_force(reread)
    assert [(row.name, row.settings) for row in chain_again.describe()] == [
        (row.name, row.settings) for row in chain.describe()
    ]
    assert tomllib.loads(text_again) == tomllib.loads(text)


def test_every_key_says_where_it_comes_from(write: Write, tmp_path: Path) -> None:
    path = write(FULL)
    lines = in_force(load({"config": str(path), "allowed_origins": ["*"]}, {"KGB_TARGET_URL": "http://other"}))[
        0
    ].split("\n")
    for line in (
        f'data_dir = "{tmp_path / "data"}"  # {path}',
        'url = "http://other"  # environment KGB_TARGET_URL',
        f'server_name = "other.example"  # {path}',
        'name = "default"  # default',
        f"idle = 7.0  # {path}",
        f'keys_file = "{tmp_path / "sub" / "keys.json"}"  # {path}',
        'required = "auto"  # default',
        'origins = ["*"]  # flag --allowed-origins',
        f'names = ["a", "b"]  # {path}',
        f'weights = {{one = 1.0, "t w o" = 2.5}}  # {path}',
        f'live = ""  # {path}',
    ):
        assert line in lines
    assert (
        sum(line == f'live = ""  # {path}' for line in lines) == 2
    )  # the table [health], and the link that inherits it
    assert "[links.Odd]" in lines


SECRETS = f"""
chain = ["{ODD}"]
dewey_url = "dewey+ws://user:hush@host:9020"
[links.Odd]
api_key = "hush"
declared = "hush"
shown_token = "seen"
url = "https://user:hu@sh@host/x@y"
"""


def test_no_secret_is_shown(write: Write) -> None:
    settings = load({"config": str(write(SECRETS))})
    text, chain = in_force(settings)
    for shown in (text, repr(chain.describe())):
        assert "hu" not in shown.replace("tests.test_app", "")
        assert "https://[REDACTED]@host/x@y" in shown
        assert "seen" in shown
    assert tomllib.loads(text)["links"]["Odd"]["api_key"] == "[REDACTED]"
    assert tomllib.loads(text)["links"]["Odd"]["declared"] == "[REDACTED]"


def test_a_secret_that_is_not_set_is_not_redacted() -> None:
    assert tomllib.loads(in_force(load({"chain": (ODD,)}))[0])["links"][ODD]["declared"] == ""


@pytest.mark.parametrize(
    "url", ["https//user:hush@host", "htps://user:hush@host", "https://user:hush@host", "https://user:hu/sh@host:x",
            "https://hush@[::1", "https://user:hush@host:99999", " user:hush@host "],
)  # fmt: skip
def test_no_fault_shows_a_credential(url: str) -> None:
    for found in (faults_of({"upstream": url}), faults_of({}, {"KGB_TARGET_URL": url})):
        (fault,) = found
        assert "hush" not in fault
        assert "hu/sh" not in fault
        assert "upstream" in fault


def test_a_source_cannot_end_its_line(tmp_path: Path) -> None:
    path = tmp_path / "new\nline.toml"
    path.write_text("port = 1")
    assert tomllib.loads(effective(load({"config": str(path)})))["port"] == 1


# Our own listener.


@pytest.mark.parametrize(
    ("host", "url", "own"),
    [
        ("127.0.0.1", "http://[::ffff:127.0.0.1]:8089", True),
        ("127.0.0.1", "http://0.0.0.0:8089", True),
        ("127.0.0.1", "http://LOCALHOST.:8089", True),
        ("::1", "http://localhost:8089", True),
        ("[::1]", "http://[0:0:0:0:0:0:0:1]:8089", True),
        ("127.0.0.2", "http://127.0.0.2:8089/v1/messages", True),
        ("127.0.0.2", "http://127.0.0.1:8089", False),
        ("127.0.0.1", "http://127.0.0.2:8089", False),
        ("127.0.0.1", "unix:/127.0.0.1:8089", False),
    ],
)
def test_what_our_own_listener_is(host: str, url: str, own: bool) -> None:
    settings = load({"host": host}, {"ANTHROPIC_BASE_URL": url})
    assert bool(settings.warnings) == own
    assert (settings.upstream.url == "https://api.anthropic.com") == own
    if own:
        (fault,) = faults_of({"host": host, "upstream": url.removesuffix("/v1/messages")})
        assert "names this server's own listener" in fault
    else:
        assert load({"host": host, "upstream": url}).upstream == settings.upstream


@pytest.mark.parametrize("host", ["http://localhost", "localhost, ::1", "u:hush@localhost", "a b"])
def test_a_host_is_an_address_alone(host: str) -> None:
    (fault,) = faults_of({"host": host})
    assert fault.startswith("flag --host: host: must be an address or a name alone, not ")


@pytest.mark.parametrize("names", [["a.example", "[::1]", "*", "*.b.example", "c"], []])
def test_hosts_that_can_match(names: list[str]) -> None:
    assert load({"allowed_hosts": names}).document.allowed_hosts == tuple(names)


@pytest.mark.parametrize("name", ["", "a:80", "https://a", "a/b", "*.", "*a.example*/", "a b"])
def test_hosts_that_cannot(name: str) -> None:
    (fault,) = faults_of({"allowed_hosts": [name]})
    assert fault.startswith(f"flag --allowed-hosts: allowed_hosts: {name!r} is no host name; ")


ORIGINS = ["https://page.example", "http://localhost:3000", "chrome-extension://abc", "*", "null"]


@pytest.mark.parametrize("origins", [ORIGINS, []])
def test_origins_that_can_match(origins: list[str]) -> None:
    assert load({"allowed_origins": origins}).document.allowed_origins == tuple(origins)


@pytest.mark.parametrize(
    "origin", ["", "page.example", "https://", "https://page.example/", "https://Page.example", "://x"]
)
def test_origins_that_cannot(origin: str) -> None:
    (fault,) = faults_of({"allowed_origins": [origin]})
    assert fault.startswith(f"flag --allowed-origins: allowed_origins: {origin!r} is no origin; ")


# The keys file.

PLACES: list[tuple[dict[str, str], dict[str, str]]] = [
    ({"config": "there/gateway.toml"}, {}),
    ({"data_dir": "there"}, {}),
    ({}, {"KGB_CONFIG": "there/gateway.toml"}),
    ({}, {"KGB_DATA_DIR": "there"}),
    ({}, {"KGB_CONFIG": "there/gateway.toml", "KGB_DATA_DIR": "elsewhere"}),
    ({"data_dir": "elsewhere"}, {"KGB_CONFIG": "there/gateway.toml"}),
    ({}, {"XDG_DATA_HOME": "/nowhere"}),
]


@pytest.mark.parametrize(("flags", "environ"), PLACES, ids=str)
@pytest.mark.parametrize("table", ["", "[links.auth]\nkeys_file = 'k.json'", "[links.Auth]\nkeys_file = '/k.json'"])
def test_kgb_keys_writes_where_the_gateway_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, flags: dict[str, str], environ: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "gateway.toml").write_text(table)
    args = argparse.Namespace(keys_file=None, config=flags.get("config"), data_dir=flags.get("data_dir"))
    place = keys.keys_file_of(args, environ)
    link = compose_chain(load(flags, environ)).find("auth")
    assert Path(link.keys_file).absolute() == place.absolute()


def test_kgb_keys_minds_no_fault_but_the_files(write: Write, tmp_path: Path) -> None:
    args = argparse.Namespace(keys_file=None, config=write("prot = 1\n[links.auth]\nkeys_file = 'k'\n"), data_dir=None)
    assert keys.keys_file_of(args, {"KGB_PORT": "x"}) == tmp_path / "k"


# Settings reach requests.


async def ask(app: web.Application, target: str = "/v1/messages", headers: list[tuple[str, str]] | None = None) -> int:
    async with start_app(app) as address, RawClient(address.host, address.port) as client:
        await client.get(target, headers or [])
        return (await client.read_response()).status


async def test_inside_pytest_aiohttp_the_guard_stands_too(aiohttp_client: MakeClient, tmp_path: Path) -> None:
    async with ScriptedUpstream(respond(200, [], b"relayed")) as upstream:
        client = await aiohttp_client(create_app(upstream=upstream.url, data_dir=str(tmp_path)))
        async with client.get("/health") as answer:
            assert (answer.status, (await answer.json())["status"]) == (200, "healthy")
        async with client.get("/v1/models", headers={"Host": "evil.example"}) as answer:
            assert (answer.status, answer.headers["x-kgb-error"]) == (403, "host_not_allowed")
        async with client.get("/v1/models", headers={"Origin": "https://evil.example"}) as answer:
            assert (answer.status, answer.headers["x-kgb-error"]) == (403, "origin_not_allowed")
        async with client.get("/v1/models") as answer:
            assert await answer.read() == b"relayed"
        assert len(upstream.requests) == 1


async def test_hosts_and_origins_that_are_listed_may_come(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        flags: dict[str, Any] = {
            "upstream": upstream.url,
            "data_dir": str(tmp_path),
            "allowed_hosts": ["Gateway.Example"],
            "allowed_origins": ["https://page.example"],
        }
        for headers in (
            [("Host", "gateway.example:8089")],
            [("Host", "localhost"), ("Origin", "https://page.example")],
        ):
            assert await ask(create_app(**flags), headers=headers) == 200
        assert await ask(create_app(**flags), headers=[("Host", "evil.example")]) == 403
        assert (
            await ask(create_app(**flags), headers=[("Host", "localhost"), ("Origin", "https://evil.example")]) == 403
        )


async def test_health_answers_without_a_key_but_not_before_the_guard(tmp_path: Path) -> None:
    create_key(tmp_path / "keys.json", "somebody")
    async with ScriptedUpstream() as upstream:
        app = create_app(upstream=upstream.url, data_dir=str(tmp_path), chain=("guard", "auth"))
        async with start_app(app) as address, RawClient(address.host, address.port) as client:
            for host, target, status in (
                ("localhost", "/health", 200),
                ("evil.example", "/health", 403),
                ("localhost", "/v1/models", 401),
            ):
                await client.get(target, [("Host", host)])
                assert (await client.read_response()).status == status
    assert not upstream.requests


async def test_paths_of_health_can_be_moved_and_left_to_the_upstream(tmp_path: Path) -> None:
    async with ScriptedUpstream(respond(418)) as upstream:
        flags: dict[str, Any] = {"upstream": upstream.url, "data_dir": str(tmp_path)}
        health = {"health": "/gateway/health", "live": "", "ready": "/r"}
        for target, status in (
            ("/gateway/health", 200),
            ("/r", 200),
            ("/health", 418),
            ("/healthz", 418),
            ("/readyz", 418),
        ):
            assert await ask(create_app(**flags, health=health), target) == status


async def test_a_body_beyond_the_limit_gets_413(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        app = create_app(upstream=upstream.url, data_dir=str(tmp_path), limits={"request_body": 10})
        async with start_app(app) as address:
            for size, status in ((10, 200), (11, 413)):
                async with RawClient(address.host, address.port) as client:
                    await client.post("/v1/messages", [], b"x" * size)
                    assert (await client.read_response()).status == status


async def test_a_header_may_have_64_kib(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        app = create_app(upstream=upstream.url, data_dir=str(tmp_path))
        async with start_app(app) as address:
            for size, status in ((65000, 200), (66000, 400)):
                async with RawClient(address.host, address.port) as client:
                    await client.get("/v1", [("x-long", "a" * size)])
                    assert (await client.read_response()).status == status


async def test_the_first_byte_comes_in_time_or_not_at_all(tmp_path: Path) -> None:
    async with ScriptedUpstream([Stall()]) as upstream:
        app = create_app(upstream=upstream.url, data_dir=str(tmp_path), timeouts={"first_byte": 0.05})
        assert await ask(app) == 504


async def test_timeouts_and_limits_reach_the_pool(tmp_path: Path) -> None:
    app = create_app(
        upstream="http://one.example",
        data_dir=str(tmp_path),
        timeouts={"connect": 1, "first_byte": 2, "idle": 3, "upstream_keepalive": 4},
        limits={"connections": 5, "queue": 6, "queue_timeout": 7, "idle": 8},
    )
    gateway = app[GATEWAY]
    (pool,) = gateway.pools
    assert attrs.astuple(pool.upstream.timeouts) == (1.0, 2.0, 3.0)
    assert attrs.astuple(pool.upstream.limits) == (5, 6, 7.0, 4.0, 8)

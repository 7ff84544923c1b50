"""KGB put together: its chain, with Fiedler's links or without; what is refused for safety; the application in a test."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

import fiedler_proxy
import kgb_gateway
from fiedler_proxy.app import compose_chain as compose_fiedler
from fiedler_proxy.app import create_app as create_fiedler
from fiedler_proxy.app import load as load_fiedler
from fiedler_proxy.config import Faults
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.lifecycle import GATEWAY
from fiedler_proxy.middlewares.guard import Guard
from fiedler_proxy.middlewares.health import Health
from fiedler_proxy.settings import Settings
from fiedler_proxy.testing import RawClient, ScriptedUpstream, respond, start_app
from kgb_gateway.app import create_app, load
from kgb_gateway.compose import compose_chain, expanded
from kgb_gateway.keys_edit import create_key

Client = TestClient[web.Request, web.Application]
MakeClient = Callable[[web.Application], Awaitable[Client]]


def names_of(settings: Settings) -> list[str]:
    return [entry.name for entry in compose_chain(settings).entries]


def faults_of(flags: dict[str, object], environ: dict[str, str] | None = None) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as raised:
        load(flags, environ)
    return raised.value.faults


# The chain.


def test_the_default_chain() -> None:
    assert names_of(load()) == ["request_id", "access_log", "dewey_tap", "guard", "health", "auth", "provider_route"]


def test_fiedler_stands_for_its_links() -> None:
    settings = load({"chain": ("request_id", "auth", "fiedler")})
    assert names_of(settings) == ["request_id", "guard", "health", "auth", "provider_route"]
    assert expanded(("auth", "fiedler")) == ("auth", "provider_route")
    assert expanded(("auth",)) == ("auth",)


def test_fiedler_alone() -> None:
    assert [entry.name for entry in compose_fiedler(load_fiedler()).entries] == [
        "guard",
        "health",
        "fiedler_key",
        "provider_route",
    ]


def test_fiedler_is_no_name_in_a_chain_of_its_own() -> None:
    with pytest.raises(SettingsError, match="no link is called 'fiedler'"):
        load_fiedler({"chain": ("fiedler",)})


def test_fiedler_comes_last() -> None:
    faults = Faults()
    assert expanded(("fiedler", "auth"), faults) == ("provider_route", "auth")
    assert faults.found == ["chain: 'fiedler' must be the last: behind it there is only the relay"]


def test_the_settings_reach_guard_and_health(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(
        'allowed_hosts = ["Gateway.Example"]\nallowed_origins = ["https://page.example"]\n'
        '[health]\nhealth = "/h"\nlive = ""\n'
    )
    chain = compose_chain(load({"config": config}))
    guard, health = chain.find("guard"), chain.find("health")
    assert isinstance(guard, Guard)
    assert isinstance(health, Health)
    assert "gateway.example" in guard.hosts
    assert guard.origins == ("https://page.example",)
    assert (health.health, health.live, health.ready, health.gateway) == ("/h", "", "/readyz", "kgb_gateway")
    assert compose_fiedler(load_fiedler()).find("health").gateway == "fiedler"


@pytest.mark.parametrize(
    ("table", "place"),
    [
        ("", "keys.json"),
        ('keys_file = ""', "keys.json"),
        ('keys_file = "sub/k.json"', "sub/k.json"),
        ('keys_file = "/k"', "/k"),
    ],
)
def test_the_keys_file_stands_beside_the_configuration(tmp_path: Path, table: str, place: str) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(f"[links.auth]\n{table}\n")
    assert compose_chain(load({"config": config})).find("auth").keys_file == str(tmp_path / place)


def test_without_a_configuration_the_keys_file_is_among_the_data(tmp_path: Path) -> None:
    assert compose_chain(load({"data_dir": str(tmp_path)})).find("auth").keys_file == str(tmp_path / "keys.json")


def test_faults_of_settings_and_chain_are_one_message(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text('prot = 1\nchain = ["acces_log", "auth"]\n[links.auth]\nrequird = 1\n[links.other]\n')
    faults = faults_of({"config": str(config)})
    assert [fault.removeprefix(f"{config}: ").partition(": ")[0] for fault in faults] == [
        "prot",
        "chain",
        "links.auth.requird",
        "links.other",
    ]
    assert all(fault.startswith(f"{config}: ") for fault in faults)


# Safe by default.

OPEN = ["0.0.0.0", "::", "10.1.2.3", "gateway.example", "0"]


@pytest.mark.parametrize("host", OPEN)
@pytest.mark.parametrize("how", ["flag", "environment", "file"])
def test_an_open_listener_without_keys_is_refused(tmp_path: Path, host: str, how: str) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(f'host = "{host}"\n' if how == "file" else "")
    flags: dict[str, object] = {"config": str(config)}
    if how == "flag":
        flags["host"] = host
    (fault,) = faults_of(flags, {"KGB_HOST": host} if how == "environment" else {})
    source = {"flag": "flag --host", "environment": "environment KGB_HOST", "file": str(config)}[how]
    assert fault.startswith(f"{source}: host: '{host}' can be reached from other machines")
    assert "`kgb keys create NAME`" in fault
    assert "listen on 127.0.0.1" in fault


def test_without_the_link_the_remedy_is_to_put_it_there() -> None:
    (fault,) = faults_of({"host": "0.0.0.0", "chain": ("request_id",)})
    assert "put 'auth' into the chain" in fault


def test_with_a_key_it_may_be_open(tmp_path: Path) -> None:
    create_key(tmp_path / "keys.json", "somebody")
    assert load({"host": "0.0.0.0", "data_dir": str(tmp_path)}).host == "0.0.0.0"


def test_where_a_key_is_always_asked_for_it_may_be_open(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text('[links.auth]\nrequired = "always"\n')
    assert load({"host": "0.0.0.0", "config": str(config)}).host == "0.0.0.0"


def test_where_nobody_is_asked_it_stays_closed(tmp_path: Path) -> None:
    create_key(tmp_path / "keys.json", "somebody")
    config = tmp_path / "gateway.toml"
    config.write_text('[links.auth]\nrequired = "never"\n')
    (fault,) = faults_of({"host": "0.0.0.0", "config": str(config)})
    assert "can be reached from other machines" in fault


def test_fiedler_is_no_more_open(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"say where its key is read with \[links.fiedler_key\] keys"):
        load_fiedler({"host": "0.0.0.0"})
    with pytest.raises(SettingsError, match="put 'auth' into the chain"):
        load_fiedler({"host": "0.0.0.0", "chain": ("provider_route",)})
    create_key(tmp_path / "keys.json", "somebody")
    flags = {"host": "0.0.0.0", "chain": ("auth", "provider_route"), "data_dir": str(tmp_path)}
    assert load_fiedler(flags).host == "0.0.0.0"


def test_an_application_is_as_careful_as_the_command(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="can be reached from other machines"):
        create_app(host="0.0.0.0", data_dir=str(tmp_path))


# The application.


def test_the_public_names_are_there() -> None:
    for package in (kgb_gateway, fiedler_proxy):
        for name in package.__all__:
            assert getattr(package, name) is not None
    assert kgb_gateway.create_app is create_app
    with pytest.raises(AttributeError, match="has no attribute 'creat_app'"):
        getattr(kgb_gateway, "creat_app")  # noqa: B009 - the attribute is not there to be named
    with pytest.raises(AttributeError, match="has no attribute 'Settigns'"):
        getattr(fiedler_proxy, "Settigns")  # noqa: B009


def test_an_application_takes_settings_or_keys() -> None:
    settings = load({"upstream": "http://one.example"})
    assert create_app(settings)[GATEWAY].upstream == settings.upstream
    assert create_app(upstream="http://two.example")[GATEWAY].upstream.host == "two.example"


def test_the_settings_reach_the_gateway(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text('via = "kgb"\nforwarded = true\n[limits]\nrequest_body = 7\n')
    gateway = create_app(load({"config": config}))[GATEWAY]
    assert (gateway.body_limit, gateway.say.via, gateway.say.forwarded) == (7, "kgb", True)


def test_an_authority_that_cannot_be_read_is_a_matter_of_the_start(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text('[upstream]\nurl = "https://one.example"\nca_file = "/nowhere/ca.pem"\n')
    with pytest.raises(SettingsError, match=r"ca_file '/nowhere/ca\.pem' cannot be used"):
        create_app(load({"config": config}))


async def test_it_runs_inside_pytest_aiohttp(aiohttp_client: MakeClient, tmp_path: Path) -> None:
    async with ScriptedUpstream(respond(201, [("x-upstream", "yes")], b"hello")) as upstream:
        client = await aiohttp_client(create_app(upstream=upstream.url, data_dir=str(tmp_path)))
        async with client.post("/v1/messages?beta=true", data=b"{}") as answer:
            assert (answer.status, await answer.read()) == (201, b"hello")
            assert answer.headers["x-upstream"] == "yes"
            assert len(answer.headers["x-kgb-request-id"]) == 36
        assert (upstream.requests[0].method, upstream.requests[0].target) == ("POST", b"/v1/messages?beta=true")


PREFIXED = [
    (b"/anthropic-proxy/v1/messages?beta=true", b"/v1/messages?beta=true"),
    (b"/anthropic-proxy", b"/"),
    (b"/anthropic-proxy/", b"/"),
    (b"/anthropic-proxy?a=b", b"/?a=b"),
    (b"/anthropic-proxy//v1/%2F..", b"//v1/%2F.."),
    (b"/anthropic-proxyish/v1", b"/anthropic-proxyish/v1"),
    (b"/v1/anthropic-proxy/", b"/v1/anthropic-proxy/"),
    (b"/v1/messages", b"/v1/messages"),
]


@pytest.mark.parametrize("kgb", [True, False], ids=["kgb with fiedler", "fiedler alone"])
async def test_every_path_passes_also_below_the_prefix(kgb: bool, tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        data = str(tmp_path)
        if kgb:
            app = create_app(upstream=upstream.url, data_dir=data, chain=("request_id", "auth", "fiedler"))
        else:
            app = create_fiedler(load_fiedler({"upstream": upstream.url, "data_dir": data}))
        async with start_app(app) as address, RawClient(address.host, address.port) as client:
            for sent, _ in PREFIXED:
                await client.get(sent)
                assert (await client.read_response()).status == 200
    assert [request.target for request in upstream.requests] == [arrived for _, arrived in PREFIXED]


async def test_kgb_without_fiedler_knows_no_prefix(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        app = create_app(upstream=upstream.url, data_dir=str(tmp_path), chain=("request_id", "auth"))
        async with start_app(app) as address, RawClient(address.host, address.port) as client:
            await client.get("/anthropic-proxy/v1")
            await client.read_response()
    assert upstream.requests[0].target == b"/anthropic-proxy/v1"


async def test_kgb_stands_in_front_of_fiedler_elsewhere(tmp_path: Path) -> None:
    async with ScriptedUpstream(respond(200, [], b"far")) as upstream:
        fiedler = create_fiedler(load_fiedler({"upstream": upstream.url}))
        async with start_app(fiedler) as far:
            environ = {"KGB_TARGET_URL": f"{far.url}/anthropic-proxy/v1/messages"}
            app = create_app(load({"data_dir": str(tmp_path)}, environ))
            async with start_app(app) as near, RawClient(near.host, near.port) as client:
                await client.post("/v1/messages", [], b"{}")
                assert (await client.read_response()).body == b"far"
    assert upstream.requests[0].target == b"/v1/messages"


async def test_health_tells_who_answers(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        apps = {
            "kgb_gateway": create_app(upstream=upstream.url, data_dir=str(tmp_path)),
            "fiedler": create_fiedler(load_fiedler({"upstream": upstream.url})),
        }
        for name, app in apps.items():
            async with start_app(app) as address, RawClient(address.host, address.port) as client:
                await client.get("/health")
                answer = json.loads((await client.read_response()).body)
                assert (answer["status"], answer["upstream"], answer["gateway"]) == ("healthy", upstream.url, name)


async def test_the_listeners_limits_are_those_of_the_settings(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    async with ScriptedUpstream() as upstream:
        config.write_text(f'upstream = "{upstream.url}"\n[limits]\nheader_field = 1024\nrequest_line = 1024\n')
        async with start_app(create_app(load({"config": config}))) as address:
            for target, headers in ((b"/" + b"a" * 1100, []), (b"/", [("x-long", "a" * 1100)])):
                async with RawClient(address.host, address.port) as client:
                    await client.get(target, headers)
                    assert (await client.read_response()).status == 400
            async with RawClient(address.host, address.port) as client:
                await client.get(b"/" + b"a" * 900, [("x-long", "a" * 900)])
                assert (await client.read_response()).status == 200

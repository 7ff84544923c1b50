"""provider_route takes its prefixes off the target, and nothing else."""

import pytest

from fiedler_proxy.config import Faults, build
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.middlewares.provider_route import ProviderRoute
from fiedler_proxy.testing import RawClient, ScriptedUpstream, check_middleware, start_app
from kgb_gateway.app import create_app


async def arrived(link: str, prefixes: tuple[str, ...] | None, *targets: bytes) -> list[bytes]:
    """The targets that an upstream with a base path gets for ``targets``."""
    links = {} if prefixes is None else {link: {"prefixes": list(prefixes)}}
    async with ScriptedUpstream() as upstream:
        app = create_app(upstream=f"{upstream.url}/base", chain=(link,), links=links)
        async with start_app(app) as address, RawClient(address.host, address.port) as client:
            for target in targets:
                await client.get(target)
                assert (await client.read_response()).status == 200
    return [request.target for request in upstream.requests]


@pytest.mark.parametrize(
    ("target", "rest"),
    [
        (b"/anthropic-proxy/v1/messages?beta=true", b"/v1/messages?beta=true"),
        (b"/anthropic-proxy", b"/"),
        (b"/anthropic-proxy/", b"/"),
        (b"/anthropic-proxy?x", b"/?x"),
        (b"/anthropic-proxy?", b"/?"),
        (b"/anthropic-proxyx", b"/anthropic-proxyx"),
        (b"/anthropic-proxyx/v1", b"/anthropic-proxyx/v1"),
        (b"/anthropic-proxy%2Fv1", b"/anthropic-proxy%2Fv1"),
        (b"/Anthropic-Proxy/v1", b"/Anthropic-Proxy/v1"),
        (b"/%61nthropic-proxy/v1", b"/%61nthropic-proxy/v1"),
        (b"//anthropic-proxy/v1", b"//anthropic-proxy/v1"),
        (b"/v1/anthropic-proxy/x", b"/v1/anthropic-proxy/x"),
        (b"/v1?next=/anthropic-proxy/x", b"/v1?next=/anthropic-proxy/x"),
        (b"/anthropic-proxy/anthropic-proxy/x", b"/anthropic-proxy/x"),
        (b"/anthropic-proxy//evil.example/x", b"//evil.example/x"),
        (b"/anthropic-proxy/a%2F..//%3A?q=%26", b"/a%2F..//%3A?q=%26"),
        (b"http://localhost/anthropic-proxy/v1", b"/v1"),
    ],
)
async def test_the_prefix_is_taken_off_once(target: bytes, rest: bytes) -> None:
    assert await arrived("provider_route", None, target) == [b"/base" + rest]


async def test_prefixes_are_configured() -> None:
    targets = (b"/one/x", b"/two/deep/x", b"/two/x", b"/anthropic-proxy/x")
    expected = [b"/base/x", b"/base/x", b"/base/two/x", b"/base/anthropic-proxy/x"]
    assert await arrived("provider_route", ("/one", "/two/deep"), *targets) == expected
    assert await arrived("provider_route", (), b"/anthropic-proxy/x") == [b"/base/anthropic-proxy/x"]


@pytest.mark.parametrize("prefix", ["", "/", "x", "/x/", "/x?y", "/x#y"])
def test_a_prefix_that_is_none_is_refused(prefix: str) -> None:
    faults = Faults()
    assert build(ProviderRoute, {"prefixes": [prefix]}, "links.provider_route", faults) is None
    (fault,) = faults.found
    assert fault.startswith(f"links.provider_route.prefixes: {prefix!r} is no prefix; write it with a slash before it")


def test_a_prefix_that_is_none_stops_the_start() -> None:
    with pytest.raises(SettingsError, match=r"links\.provider_route\.prefixes: '/x/' is no prefix"):
        create_app(chain=("provider_route",), links={"provider_route": {"prefixes": ["/x/"]}})


def test_it_stands_behind_auth() -> None:
    with pytest.raises(SettingsError, match="'provider_route' must stand after 'auth'"):
        create_app(chain=("provider_route", "auth"))


async def test_it_keeps_the_contract_of_a_link() -> None:
    await check_middleware(ProviderRoute())

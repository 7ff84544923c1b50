"""Names and tables become links in order, or faults that say which name, where and what to do."""

import importlib.metadata
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from fiedler_proxy.chain import ALWAYS, GROUP, Chain, compose, installed
from fiedler_proxy.config import Faults, setting
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.server import Handler
from kgb_gateway.middlewares.auth import Auth
from kgb_gateway.middlewares.request_id import RequestId

HERE = __name__


@web.middleware
@attrs.frozen
class BodyLimit:
    limit: int = 1024
    token: str = setting("", secret=True)
    after: ClassVar[tuple[str, ...]] = ("auth",)
    transforms: ClassVar[bool] = True
    reads_body: ClassVar[bool] = True

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return await handler(request)


@web.middleware
@attrs.frozen
class Early:
    before: ClassVar[tuple[str, ...]] = ("auth",)

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return await handler(request)


@web.middleware
class Plain:
    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return await handler(request)


@web.middleware
@attrs.frozen
class Refusing:
    url: str = ""

    def __attrs_post_init__(self) -> None:
        raise SettingsError(["links.refusing.url: it is never right", "links.refusing.other: nor is this"])


@web.middleware
@attrs.frozen
class Broken:
    def __attrs_post_init__(self) -> None:
        raise RuntimeError("made of glass")


@attrs.frozen
class Undecorated:
    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return await handler(request)


@web.middleware
@attrs.frozen
class Synchronous:
    def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        raise NotImplementedError


@web.middleware
async def function(request: web.Request, handler: Handler) -> web.StreamResponse:
    return await handler(request)


class Holder:
    Link = BodyLimit


ready = BodyLimit(7)


def composed(*names: str, always: tuple[str, ...] = (), **tables: Mapping[str, object]) -> Chain:
    faults = Faults()
    chain = compose(names, tables, faults, always=always)
    assert not faults.found
    return chain


def faults_of(*names: str, **tables: Any) -> list[str]:
    faults = Faults()
    compose(names, tables, faults, always=())
    return faults.found


def names_of(chain: Chain) -> list[str]:
    return [entry.name for entry in chain.entries]


# What a chain is made of.


def test_built_in_links_come_by_the_authors_door() -> None:
    for name in ("request_id", "access_log", "auth", "guard", "health", "provider_route"):
        assert installed()[name].group == GROUP


def test_links_stand_in_the_order_of_their_names() -> None:
    chain = composed("request_id", "auth", f"{HERE}:BodyLimit")
    assert [type(link) for link in chain.links] == [RequestId, Auth, BodyLimit]
    assert isinstance(chain.find("auth"), Auth)
    assert chain.find("access_log") is None


def test_an_empty_chain_is_one() -> None:
    assert composed().links == ()


@pytest.mark.parametrize("table", ["BodyLimit", f"{HERE}:BodyLimit"])
def test_a_table_goes_by_the_attribute_or_by_the_whole_name(table: str) -> None:
    tables: dict[str, Any] = {table: {"limit": 9}}
    (link,) = composed(f"{HERE}:BodyLimit", **tables).links
    assert link == BodyLimit(9)


def test_an_attribute_may_lie_deeper() -> None:
    assert composed(f"{HERE}:Holder.Link").links == (BodyLimit(),)


def test_functions_instances_and_plain_classes_are_links_too() -> None:
    chain = composed(f"{HERE}:function", f"{HERE}:ready", f"{HERE}:Plain")
    assert chain.links[:2] == (function, ready)
    assert isinstance(chain.links[2], Plain)


@web.middleware
@attrs.frozen
class Filed:
    place: str = setting("", path=True)
    other: str = setting("-", path=True)

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return await handler(request)


@pytest.mark.parametrize(("text", "place"), [("x", "/base/x"), ("/x", "/x"), ("", ""), ("-", "-")])
def test_a_relative_path_begins_at_the_base(text: str, place: str) -> None:
    faults = Faults()
    chain = compose([f"{HERE}:Filed"], {"Filed": {"place": text}}, faults, always=(), base=Path("/base"))
    assert not faults.found
    assert chain.links == (Filed(place),)


def test_defaults_fill_what_a_table_leaves_out() -> None:
    name, faults = f"{HERE}:BodyLimit", Faults()
    defaults = {name: {"limit": 5, "token": "t", "of_another_version": 1}}
    chain = compose([name], {"BodyLimit": {"limit": 6}}, faults, defaults=defaults, always=())
    assert not faults.found
    assert chain.links == (BodyLimit(6, "t"),)


# The links that are always there.


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ((), ["guard", "health"]),
        (("auth",), ["guard", "health", "auth"]),
        (("request_id", "access_log"), ["request_id", "access_log", "guard", "health"]),
        (("request_id", "access_log", "auth"), ["request_id", "access_log", "guard", "health", "auth"]),
        (("request_id", "auth", "access_log"), ["request_id", "guard", "health", "auth", "access_log"]),
        ((f"{HERE}:function", "request_id"), ["guard", "health", f"{HERE}:function", "request_id"]),
        (("health", "auth"), ["guard", "health", "auth"]),
    ],
)
def test_guard_and_health_stand_behind_the_outer_links(names: tuple[str, ...], order: list[str]) -> None:
    assert names_of(composed(*names, always=ALWAYS)) == order


def test_the_chain_says_why_a_link_is_there() -> None:
    chain = composed("request_id", "auth", always=ALWAYS)
    assert [row.why for row in chain.describe()] == [
        "named in chain",
        "always there, behind the outer links",
        "always there, behind the outer links",
        "named in chain",
    ]


# What kgb chain prints.


def test_a_row_holds_settings_and_powers_but_no_secret() -> None:
    chain = composed("request_id", f"{HERE}:BodyLimit", BodyLimit={"limit": 9, "token": "hush"})
    row = chain.describe()[1]
    assert (row.position, row.name, row.source) == (2, f"{HERE}:BodyLimit", f"{HERE}:BodyLimit")
    assert row.settings == {"limit": 9, "token": "[REDACTED]"}
    assert row.powers == ("transforms", "reads_body")
    assert "hush" not in repr(chain.describe())


def test_a_function_has_no_settings_and_no_powers() -> None:
    (row,) = composed(f"{HERE}:function").describe()
    assert (row.settings, row.powers, row.source) == ({}, (), f"{HERE}:function")


# Faults.


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (("acces_log",), "chain: no link is called 'acces_log' (did you mean 'access_log'?); installed: "),
        (("",), "chain: no link is called ''; installed: "),
        (("nowhere:Link",), "chain: 'nowhere:Link' cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ((":Link",), "chain: ':Link' cannot be imported: ValueError: Empty module name"),
        (("..:Link",), "chain: '..:Link' cannot be imported: TypeError: "),
        (
            (f"{HERE}:BodyLimits",),
            f"chain: '{HERE}:BodyLimits': the module has no 'BodyLimits' (did you mean 'BodyLimit'?)",
        ),
        ((f"{HERE}:",), f"chain: '{HERE}:': the module has no ''"),
        ((f"{HERE}:Holder.Lnk",), f"chain: '{HERE}:Holder.Lnk': the 'Holder' has no 'Lnk' (did you mean 'Link'?)"),
        (
            (f"{HERE}:Undecorated",),
            f"chain: '{HERE}:Undecorated' is not decorated; write @web.middleware above it",
        ),
        (
            (f"{HERE}:Synchronous",),
            f"chain: '{HERE}:Synchronous' is no middleware: it is not an async function or a class with an async __call__",
        ),
        (
            (f"{HERE}:HERE",),
            f"chain: '{HERE}:HERE' is no middleware: it is not an async function or a class with an async __call__",
        ),
        ((f"{HERE}:BodyLimit", "auth"), f"chain: '{HERE}:BodyLimit' must stand after 'auth'"),
        (("auth", f"{HERE}:Early"), f"chain: '{HERE}:Early' must stand before 'auth'"),
        (("auth", "request_id", "auth"), "chain: 'auth' stands in the chain more than once"),
        (
            (f"{HERE}:Broken",),
            f"links.{HERE}:Broken: '{HERE}:Broken' cannot be made: RuntimeError: made of glass",
        ),
    ],
)
def test_a_name_that_is_no_link(names: tuple[str, ...], fault: str) -> None:
    (found,) = faults_of(*names)
    assert found.startswith(fault)


def test_an_order_holds_among_links_that_are_there() -> None:
    assert faults_of(f"{HERE}:BodyLimit", f"{HERE}:Early") == []


@pytest.mark.parametrize(
    ("names", "tables", "fault"),
    [
        (("auth",), {"auth": {"requird": 1}}, "links.auth.requird: there is no such key (did you mean 'required'?)"),
        (("auth",), {"auth": {"required": 1}}, "links.auth.required: must be a string, not a whole number"),
        (("auth",), {"auth": 1}, "links.auth: must be a table, not a whole number"),
        (("auth",), {"auht": {}}, "links.auht: the chain has no link of that name (did you mean 'auth'?)"),
        ((), {"auth": {}}, "links.auth: the chain has no link of that name"),
        (
            (f"{HERE}:function",),
            {f"{HERE}:function": {"a": 1}},
            f"links.{HERE}:function: '{HERE}:function' is a function and takes no settings",
        ),
        (
            (f"{HERE}:Plain",),
            {"Plain": {"a": 1}},
            f"links.Plain: '{HERE}:Plain' is no attrs class and takes no settings",
        ),
    ],
)
def test_a_table_that_fits_no_link(names: tuple[str, ...], tables: dict[str, object], fault: str) -> None:
    assert faults_of(*names, **tables) == [fault]


def test_what_a_link_says_against_its_settings_is_among_the_faults() -> None:
    assert faults_of(f"{HERE}:Refusing") == [
        "links.refusing.url: it is never right",
        "links.refusing.other: nor is this",
    ]


def test_a_name_that_is_no_link_may_still_be_meant() -> None:
    faults = Faults()
    compose(["switchbord"], {}, faults, always=(), known=("switchboard",))
    assert "(did you mean 'switchboard'?)" in faults.found[0]
    assert "(did you mean" not in faults_of("switchbord")[0]


def test_every_fault_is_found_at_once() -> None:
    found = faults_of("acces_log", "auth", f"{HERE}:Early", "auth", auth={"requird": 1}, other={})
    assert [fault.partition(":")[0] for fault in found] == ["chain", "chain", "links.auth.requird", "links.other"]


def test_a_module_that_breaks_on_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "kgb_broken_link.py").write_text("def broken(:\n")
    (found,) = faults_of("kgb_broken_link:Link")
    assert found.startswith("chain: 'kgb_broken_link:Link' cannot be imported: SyntaxError: ")


def test_a_module_of_an_author_is_found_where_python_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kgb_authors_link.py").write_text(
        "from __future__ import annotations\nimport attrs\nfrom aiohttp import web\n"
        "@web.middleware\n@attrs.frozen\nclass Link:\n    size: int = 1\n"
        "    async def __call__(self, request, handler):\n        return await handler(request)\n"
    )
    (found,) = faults_of("kgb_authors_link:Link")
    assert "No module named 'kgb_authors_link'" in found
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "kgb_authors_link", raising=False)
    (link,) = composed("kgb_authors_link:Link", Link={"size": 2}).links
    assert link.size == 2


def install(place: Path, distribution: str, name: str, value: str) -> None:
    info = place / f"{distribution}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {value}\n")


def test_a_link_of_another_distribution_goes_by_its_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "acme", "acme_limit", f"{HERE}:BodyLimit")
    monkeypatch.syspath_prepend(tmp_path)
    for table in ("acme_limit", "BodyLimit", f"{HERE}:BodyLimit"):
        tables: dict[str, Any] = {table: {"limit": 9}}
        (row,) = composed("acme_limit", **tables).describe()
        assert (row.name, row.settings["limit"], row.source) == ("acme_limit", 9, f"{HERE}:BodyLimit")
    assert names_of(composed(f"{HERE}:BodyLimit")) == ["acme_limit"]


def test_a_name_that_two_distributions_claim_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "acme", "auth", f"{HERE}:BodyLimit")
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = faults_of("auth")
    assert found == (
        f"chain: 'auth' may mean kgb_gateway.middlewares.auth:Auth or {HERE}:BodyLimit: write the one that is meant"
    )
    assert isinstance(composed("kgb_gateway.middlewares.auth:Auth").links[0], Auth)


def test_nothing_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fiedler_proxy.chain.entry_points", lambda group: importlib.metadata.EntryPoints())
    (found,) = faults_of("auth")
    assert found.startswith("chain: no link is called 'auth'")


# Whatever the names, there is a chain or a fault.

NAMES = st.text(max_size=6) | st.sampled_from(
    [
        "auth",
        "request_id",
        "guard",
        "acces_log",
        f"{HERE}:BodyLimit",
        f"{HERE}:",
        f"{HERE}:Holder..Link",
        ":",
        "a:b",
        "..:x",
    ]
)
TABLES = st.dictionaries(
    NAMES, st.dictionaries(st.text(max_size=4), st.integers(), max_size=2) | st.integers(), max_size=3
)


@settings(max_examples=150)
@given(st.lists(NAMES, max_size=4), TABLES)
def test_any_names_are_composed_or_faulted(names: list[str], tables: dict[str, object]) -> None:
    faults = Faults()
    chain = compose(names, tables, faults)
    if not faults.found:
        assert {*names} <= {entry.name for entry in chain.entries}
        assert {*ALWAYS} <= {entry.name for entry in chain.entries}


# What nobody would write on purpose.


def test_only_outer_links_stand_before_the_guard() -> None:
    assert faults_of("auth", "guard", "health")


@pytest.mark.parametrize("names", [("guard", "auth"), ("request_id", "guard", "access_log", "auth")])
def test_health_stands_behind_a_guard_that_is_named(names: tuple[str, ...]) -> None:
    order = names_of(composed(*names, always=ALWAYS))
    assert order.index("guard") < order.index("health") < order.index("auth")


def test_a_link_by_two_names_is_there_twice() -> None:
    assert faults_of("auth", "kgb_gateway.middlewares.auth:Auth")


def test_a_module_that_exits_on_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "kgb_exiting_link.py").write_text("raise SystemExit(3)\n")
    assert faults_of("kgb_exiting_link:Link")


@web.middleware
@attrs.frozen
class Undeclared:
    api_key: str = ""
    url: str = ""

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return await handler(request)


def test_what_is_named_like_a_secret_is_not_shown() -> None:
    shown = repr(
        composed(f"{HERE}:Undeclared", Undeclared={"api_key": "hush", "url": "https://u:hush@host"}).describe()
    )
    assert "hush" not in shown

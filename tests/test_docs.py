"""The documentation says what is so: codes, commands, examples and names in it are the ones of the code."""

import argparse
import ast
import asyncio
import itertools
import json
import re
import shlex
import tomllib
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import aiohttp
import attrs
import pytest

from fiedler_proxy.chain import installed
from fiedler_proxy.config import keys_of
from fiedler_proxy.settings import FIEDLER, TABLES
from fiedler_proxy.testing import start_app
from kgb_gateway.__main__ import PARSERS
from kgb_gateway.app import create_app, load
from kgb_gateway.demo import demo_upstream
from kgb_gateway.settings import KGB

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.rst", *sorted(DOCS.glob("*.rst")), *sorted((ROOT / "deploy").glob("*.rst"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

PACKAGES = ("fiedler_proxy", "kgb_gateway")

NOT_RUNNING = ("testing", "demo", "compare", "commands")
"""Packages whose errors no caller of the gateway ever sees."""


def shipped() -> Iterator[ast.Module]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if not set(path.parts) & set(NOT_RUNNING):
                yield ast.parse(path.read_text(encoding="utf-8"))


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in ``language``, dedented."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(rf"^\.\. code-block:: {language}\n((?:\n|   .*\n)+)", text, re.MULTILINE)
    return ["\n".join(line[3:] for line in block.strip("\n").split("\n")) for block in found]


# Errors.

CODE = r"[a-z]+(?:_[a-z0-9]+)*"
FIRST = ("ExchangeError", "WireError", "_timeout", "_refusal", "_busy")
"""Calls whose first argument is a code."""


def raised_codes() -> set[str]:
    """Codes in the source: arguments of the calls that take one, and the tuples that such calls are fed from.

    A code that is kept in a variable is kept in one called ``code``.
    """
    codes: set[str] = set()
    for tree in shipped():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                codes |= set(_codes_of_call(node))
            elif isinstance(node, ast.Assign):
                codes |= set(_codes_of_assignment(node))
            elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and node.value.elts:
                codes |= {text for text in _texts(node.value.elts[0]) if text.startswith(("upstream_", "connect_"))}
    return codes


def _codes_of_call(node: ast.Call) -> Iterator[str]:
    name = getattr(node.func, "id", getattr(node.func, "attr", ""))
    place = 0 if name in FIRST else 1 if name == "ResponseCut" else None
    if place is not None and len(node.args) > place:
        yield from (text for text in _texts(node.args[place]) if text)


def _codes_of_assignment(node: ast.Assign) -> Iterator[str]:
    target, value = node.targets[0], node.value
    pairs = (
        zip(target.elts, value.elts, strict=False)
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
        else [(target, value)]
    )
    for name, one in pairs:
        if isinstance(name, ast.Name) and name.id == "code":
            yield from (text for text in _texts(one) if text)


def _texts(node: ast.expr) -> Iterator[str]:
    """Constant strings that ``node`` may be; the pieces of an f-string do not count."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body)
        yield from _texts(node.orelse)


def documented_codes() -> list[str]:
    text = (DOCS / "errors.rst").read_text(encoding="utf-8")
    return re.findall(rf"^({CODE})\n   \S", text, re.MULTILINE)


def test_every_error_code_has_an_entry() -> None:
    missing = raised_codes() - set(documented_codes())
    assert not missing, f"docs/errors.rst lacks {sorted(missing)}"


def test_no_entry_is_about_an_error_that_is_gone() -> None:
    texts = {node.value for tree in shipped() for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    made = {code for code in documented_codes() if code.startswith("key_in_")}  # "key_in_" and where it stands
    gone = set(documented_codes()) - texts - made
    assert not gone, f"docs/errors.rst knows {sorted(gone)}, which nobody raises"
    assert len(documented_codes()) == len(set(documented_codes()))


def test_codes_are_found() -> None:
    assert {"upstream_refused", "first_byte_timeout", "missing_key", "caller_left", "loop"} <= raised_codes()


# Names in the text.


@each_page
def test_modules_and_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"``((?:fiedler_proxy|kgb_gateway|tests|docs|deploy|\.ci)/[\w./*-]*)``", text):
        assert list(ROOT.glob(name.rstrip("/"))), f"{page.name} names {name}, which is not there"


@each_page
def test_python_examples_compile(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


def test_every_page_is_reachable() -> None:
    index = (DOCS / "index.rst").read_text(encoding="utf-8")
    assert {page.stem for page in DOCS.glob("*.rst")} - {"index"} <= set(
        re.findall(r"^   ([\w-]+)$", index, re.MULTILINE)
    )


# What the README promises.


def readme_commands() -> list[str]:
    """The two lines that the README opens with; ``.ci/run`` runs them as they stand."""
    return re.findall(r"^    (python3 -m venv .*)$", (ROOT / "README.rst").read_text(encoding="utf-8"), re.MULTILINE)


COMMAND = re.compile(r"^(?:    |   \$ )((?:\.venv/bin/)?(?:kgb|fiedler) .*(?:\\\n.*)*)$", re.MULTILINE)


def commands() -> argparse.ArgumentParser:
    kgb = argparse.ArgumentParser(prog="kgb", exit_on_error=False)
    subparsers = kgb.add_subparsers(required=True)
    for add_parser in PARSERS:
        add_parser(subparsers)
    return kgb


@each_page
def test_commands_are_spelled_right(page: Path) -> None:
    kgb = commands()
    for line in COMMAND.findall(page.read_text(encoding="utf-8")):
        program, *words = shlex.split(line, comments=True)
        if program.endswith("kgb"):
            try:
                kgb.parse_args(words)
            except (argparse.ArgumentError, SystemExit) as error:
                pytest.fail(f"{page.name}: {line}: {error}")


@pytest.fixture
async def demo() -> AsyncIterator[str]:
    """The base URL of a gateway in front of the demo provider."""
    async with demo_upstream(pace=0) as upstream:
        app = create_app(upstream=upstream, chain=("request_id", "auth"))
        async with start_app(app) as address:
            yield address.url


@pytest.mark.parametrize("number", [0, 1], ids=["anthropic", "openai"])
async def test_the_readmes_sdk_examples_print_a_reply(
    number: int, demo: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a")
    monkeypatch.setenv("OPENAI_API_KEY", "o")
    code = blocks(ROOT / "README.rst", "python")[number]
    assert "http://127.0.0.1:8089" in code
    await asyncio.to_thread(exec, code.replace("http://127.0.0.1:8089", demo), {})
    assert "demo" in capsys.readouterr().out


async def test_the_readmes_curl_example_streams(demo: str) -> None:
    line = re.search(
        r"^    (curl -N .*(?:\n      .*)*)", (ROOT / "README.rst").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert line is not None
    words = shlex.split(line[1].replace("\\\n", " "))
    headers = dict(word.split(": ", 1) for flag, word in itertools.pairwise(words) if flag == "-H")
    body = words[words.index("-d") + 1]
    url = words[2].replace("http://127.0.0.1:8089", demo)
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert b"message_stop" in await answer.read()


def test_the_readme_opens_with_two_commands() -> None:
    text = (ROOT / "README.rst").read_text(encoding="utf-8")
    first, second = readme_commands()
    assert first.endswith("bin/kgb demo")
    assert second.endswith("bin/pytest")
    assert text.index(second) < text.index("\nUsing it\n")


# Settings.

BUILT_IN = {name: point.load() for name, point in installed().items() if point.value.startswith(PACKAGES)}


def settings_classes() -> dict[str, type]:
    """Every table of the configuration file, those of the built-in links included, with the class behind it."""
    return {**TABLES, **{f"links.{name}": link for name, link in BUILT_IN.items() if attrs.has(link)}}


def settings_defaults() -> dict[str, object]:
    """Every setting by its dotted name, with its default."""
    found: dict[str, object] = {}
    for table, cls in settings_classes().items():
        for key, field in keys_of(cls).items():
            make = getattr(field.default, "factory", None)
            found[f"{table}.{key}".strip(".")] = field.default if make is None else make()
    return {name: default for name, default in found.items() if name not in TABLES}


def documented_settings() -> dict[str, str]:
    """The settings that docs/configuration.rst has an entry for, with the default it gives."""
    text = (DOCS / "configuration.rst").read_text(encoding="utf-8")
    return dict(re.findall(r"^\.\. confval:: (\S+)\n   :type: .*\n   :default: ``(.*)``$", text, re.MULTILINE))


def written(value: object) -> str:
    """``value`` as TOML."""
    return json.dumps(str(value) if isinstance(value, Path) else value)


def test_every_setting_has_an_entry() -> None:
    assert sorted(documented_settings()) == sorted(settings_defaults())


@pytest.mark.parametrize("name", sorted(settings_defaults()))
def test_the_documented_default_is_the_default(name: str) -> None:
    assert documented_settings().get(name) == written(settings_defaults()[name])


def test_every_environment_variable_is_documented() -> None:
    text = (DOCS / "configuration.rst").read_text(encoding="utf-8")
    for program in (KGB, FIEDLER):
        for variable in (*program.variables, *program.upstream_variables, program.config_variable):
            assert f"``{variable}``" in text, variable


@each_page
def test_toml_examples_are_valid(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS / "examples")
    for block in blocks(page, "toml"):
        path = tmp_path / "gateway.toml"
        path.write_text(block)
        load({"config": str(path)})


EXAMPLE = ROOT / "deploy" / "gateway.toml.example"


def uncommented() -> str:
    """The example with every key in force."""
    return re.sub(r"^#(?=\S)", "", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("text", [EXAMPLE.read_text(encoding="utf-8"), uncommented()], ids=["as it is", "every key"])
def test_the_example_configuration_starts(text: str, tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(text)
    load({"config": str(path)})


LINKS_LEFT_OUT = {
    *("links.provider_route.prefixes", "links.provider_route.merge_models"),
    *("links.fiedler_key.keys", "links.fiedler_key.base"),
}


def test_the_example_configuration_holds_every_key() -> None:
    held = set(_dotted(tomllib.loads(uncommented())))
    prefixes = ("links.guard", "links.health")
    tables = {
        "links",
        "providers",
        "slots",
        "links.dewey_tap.callers",
        "links.dewey_tap.routes",
    }  # empty ones hold no key
    optional = {*tables, *(name for name in settings_defaults() if name.startswith(prefixes))}
    assert held == set(settings_defaults()) - optional - LINKS_LEFT_OUT


def test_the_example_configuration_comments_out_defaults_only() -> None:
    text, defaults = EXAMPLE.read_text(encoding="utf-8"), settings_defaults()
    table = ""
    for line in text.split("\n"):
        if match := re.fullmatch(r"\[(.*)\]", line):
            table = f"{match[1]}."
        elif match := re.fullmatch(r"#(\w+) = (.*)", line):
            assert match[2] == written(defaults[table + match[1]]), line


def _dotted(table: Mapping[str, object], above: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{above}{key}.")
        else:
            yield above + key


# The units.

GATEWAY, LIBRARIAN = "kgb-gateway@.service", "kgb-librarian.service"


def unit(name: str) -> dict[str, dict[str, list[str]]]:
    """A systemd unit: section, key, values."""
    sections: dict[str, dict[str, list[str]]] = {}
    current: dict[str, list[str]] = {}
    for line in (ROOT / "deploy" / name).read_text(encoding="utf-8").split("\n"):
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), {})
        elif "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            current.setdefault(key, []).append(value)
    return sections


def test_the_unit_waits_longer_than_a_drain() -> None:
    service = unit(GATEWAY)["Service"]
    assert float(service["TimeoutStopSec"][0]) > float(str(settings_defaults()["timeouts.drain"])) + 5
    assert service["Type"] == ["notify"]
    assert service["KillSignal"] == ["SIGTERM"]


@pytest.mark.parametrize("name", [GATEWAY, LIBRARIAN])
def test_a_unit_runs_a_command_that_there_is(name: str) -> None:
    (command,) = unit(name)["Service"]["ExecStart"]
    program, *words = command.replace("%i", "a").split()
    assert Path(program).name == "kgb"
    arguments = commands().parse_args(words)
    assert str(arguments.config) == "/etc/kgb/gateway.toml"


def test_both_units_share_what_they_work_on() -> None:
    gateway, librarian = unit(GATEWAY)["Service"], unit(LIBRARIAN)["Service"]
    for key in ("User", "Group", "UMask", "StateDirectory", "StateDirectoryMode", "RemoveIPC"):
        assert gateway[key] == librarian[key], key
    for service in (gateway, librarian):
        assert service["ProtectSystem"] == ["strict"]
        assert service["NoNewPrivileges"] == ["yes"]

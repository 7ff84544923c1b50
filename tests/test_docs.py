"""The documentation says what is so: codes, commands, examples and names in it are the ones of the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.rst", *sorted(DOCS.glob("*.rst")), *sorted((ROOT / "deploy").glob("*.rst"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

NOT_RUNNING = ("testing", "demo", "compare", "commands")
"""Packages whose errors no caller of the gateway ever sees."""


def shipped() -> Iterator[ast.Module]:
    for package in ("fiedler_proxy", "kgb_gateway"):
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
    """Codes in the source: arguments of the calls that take one, and the tuples that such calls are fed from."""
    codes: set[str] = set()
    for tree in shipped():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                codes |= set(_codes_of_call(node))
            elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
                codes |= {text for text in _texts(node.value.elts[0]) if text.startswith(("upstream_", "connect_"))}
    return codes


def _codes_of_call(node: ast.Call) -> Iterator[str]:
    name = getattr(node.func, "id", getattr(node.func, "attr", ""))
    place = 0 if name in FIRST else 1 if name == "ResponseCut" else None
    if place is not None and len(node.args) > place:
        yield from (text for text in _texts(node.args[place]) if text)


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


def test_the_readme_opens_with_two_commands() -> None:
    text = (ROOT / "README.rst").read_text(encoding="utf-8")
    first, second = readme_commands()
    assert first.endswith("bin/kgb demo")
    assert second.endswith("bin/pytest")
    assert text.index(second) < text.index("\nUsing it\n")

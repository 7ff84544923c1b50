"""Sphinx configuration, and two small directives: what changed, and which tests hold which trap shut."""

import ast
import configparser
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

_metadata = configparser.ConfigParser()
_metadata.read(ROOT / "setup.cfg")

project = "kgb-gateway"
author = "kgb-gateway contributors"
copyright = "2026, kgb-gateway contributors"  # noqa: A001 - Sphinx's name
version = release = _metadata["metadata"]["version"]

extensions: list[str] = []
exclude_patterns = ["_build", "changes", "examples"]
html_theme = "alabaster"
html_theme_options = {"description": _metadata["metadata"]["description"], "fixed_sidebar": True}
highlight_language = "none"
nitpicky = True

KINDS = {"feature": "New", "fix": "Mended", "removal": "Gone", "doc": "Documentation", "misc": "Beside"}
"""What a fragment may be called: ``changes/ISSUE.KIND.rst``."""


class Fragments(SphinxDirective):
    """The fragments in ``changes/``, newest issue first, by kind."""

    def run(self) -> list[nodes.Node]:
        paths = sorted((DOCS / "changes").glob("*.rst"), key=lambda path: (-int(path.name.split(".")[0]), path.name))
        lines: list[str] = []
        for kind, title in KINDS.items():
            texts = [self.text(path) for path in paths if path.name.split(".")[1] == kind]
            lines += [f"**{title}**", "", *[line for text in texts for line in text], ""] if texts else []
        parent = nodes.section()
        self.state.nested_parse(StringList(lines, "changes"), self.content_offset, parent)
        return parent.children

    def text(self, path: Path) -> list[str]:
        """A fragment as a list item."""
        self.env.note_dependency(str(path))
        first, *rest = path.read_text(encoding="utf-8").strip().split("\n")
        return [f"- {first}", *[f"  {line}".rstrip() for line in rest], ""]


class Traps(SphinxDirective):
    """Every test called ``test_trap_...``, by file: its name says what it holds shut."""

    def run(self) -> list[nodes.Node]:
        found = nodes.definition_list()
        for path in sorted((ROOT / "tests").rglob("test_*.py")):
            names = list(traps_of(path))
            if names:
                self.env.note_dependency(str(path))
                found += self.item(str(path.relative_to(ROOT)), names)
        return [found]

    def item(self, file: str, names: list[str]) -> nodes.definition_list_item:
        """One file with its traps."""
        listed = nodes.bullet_list()
        for name in names:
            text = name.removeprefix("test_trap_").replace("_", " ")
            listed += nodes.list_item("", nodes.paragraph(text=text))
        term = nodes.term("", "", nodes.literal(text=file))
        return nodes.definition_list_item("", term, nodes.definition("", listed))


def traps_of(path: Path) -> Iterator[str]:
    """Names of the trap tests in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_trap_"):
            yield node.name


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.add_directive("fragments", Fragments)
    app.add_directive("traps", Traps)

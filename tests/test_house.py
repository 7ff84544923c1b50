"""The house: who may import whom, how large a part may grow, where foreign private doors are used.

It reads the source of both packages and runs none of it. A new module must be given its floor here: that is the moment
to think about where it belongs.
"""

import ast
import configparser
import fnmatch
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from aiohttp import web

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fiedler_proxy", "kgb_gateway")

FLOORS = {
    # Pure: what things are and what is decided. No event loop, no socket, no aiohttp.
    "fiedler_proxy.errors": 0,
    "fiedler_proxy.breaker": 0,
    "fiedler_proxy.exchange": 0,
    "fiedler_proxy.framing": 0,
    "fiedler_proxy.guard": 0,
    "fiedler_proxy.headers": 0,
    "fiedler_proxy.heads": 0,
    "fiedler_proxy.kept": 0,
    "fiedler_proxy.model_name": 0,
    "fiedler_proxy.provider": 0,
    "fiedler_proxy.route": 0,
    "fiedler_proxy.slot_guard": 0,
    "fiedler_proxy.target": 0,
    "fiedler_proxy.upstream": 0,
    "kgb_gateway.caller": 0,
    "kgb_gateway.record": 0,
    "kgb_gateway.redact": 0,
    "kgb_gateway.said": 0,
    "kgb_gateway.dewey": 0,
    "kgb_gateway.dewey.canon": 0,
    "kgb_gateway.dewey.entry": 0,
    "kgb_gateway.dewey.identity": 0,
    "kgb_gateway.dewey.linking": 0,
    "kgb_gateway.dewey.price_table": 0,
    "kgb_gateway.dewey.prices": 0,
    "kgb_gateway.dewey.usage": 0,
    "kgb_gateway.dewey.document": 0,
    "kgb_gateway.dewey.imports.*": 0,
    "kgb_gateway.dewey.media": 0,
    "kgb_gateway.dewey.packing": 0,
    "kgb_gateway.dewey.show": 0,
    "kgb_gateway.dewey.tables": 0,
    "kgb_gateway.dewey.texts": 0,
    "kgb_gateway.dewey.turn_json": 0,
    "kgb_gateway.dewey.transcripts.*": 0,
    # Mechanisms: they know how, not when or for whom.
    "fiedler_proxy.attempts": 1,
    "fiedler_proxy.body_peek": 1,
    "fiedler_proxy.chain": 1,
    "fiedler_proxy.clock": 1,
    "fiedler_proxy.config": 1,
    "fiedler_proxy.control": 1,
    "fiedler_proxy.explain": 1,
    "fiedler_proxy.inner": 1,
    "fiedler_proxy.preflight": 1,
    "fiedler_proxy.shadow": 1,
    "fiedler_proxy.status": 1,
    "fiedler_proxy.watch": 1,
    "fiedler_proxy.links": 1,
    "fiedler_proxy.turn": 1,
    "fiedler_proxy.way": 1,
    "fiedler_proxy.answer": 1,
    "fiedler_proxy.flow": 1,
    "fiedler_proxy.gate": 1,
    "fiedler_proxy.hold": 1,
    "fiedler_proxy.merged_models": 1,
    "fiedler_proxy.ids": 1,
    "fiedler_proxy.key_source": 1,
    "fiedler_proxy.lifecycle": 1,
    "fiedler_proxy.logs": 1,
    "fiedler_proxy.notify": 1,
    "fiedler_proxy.pool": 1,
    "fiedler_proxy.relay": 1,
    "fiedler_proxy.router": 1,
    "fiedler_proxy.server": 1,
    "fiedler_proxy.signer": 1,
    "fiedler_proxy.slot_choice": 1,
    "fiedler_proxy.sockets": 1,
    "fiedler_proxy.targets": 1,
    "fiedler_proxy.tunnel": 1,
    "fiedler_proxy.upload": 1,
    "fiedler_proxy.wire": 1,
    "kgb_gateway.companion": 1,
    "kgb_gateway.control_client": 1,
    "kgb_gateway.dewey.adoption": 1,
    "kgb_gateway.dewey.archive": 1,
    "kgb_gateway.dewey.aside": 1,
    "kgb_gateway.dewey.exchanges": 1,
    "kgb_gateway.dewey.export.*": 1,
    "kgb_gateway.dewey.feed": 1,
    "kgb_gateway.dewey.importing": 1,
    "kgb_gateway.dewey.ingest": 1,
    "kgb_gateway.dewey.librarian": 1,
    "kgb_gateway.dewey.live": 1,
    "kgb_gateway.dewey.notes": 1,
    "kgb_gateway.dewey.placing": 1,
    "kgb_gateway.dewey.raw": 1,
    "kgb_gateway.dewey.reading": 1,
    "kgb_gateway.dewey.rebuild": 1,
    "kgb_gateway.dewey.serving": 1,
    "kgb_gateway.dewey.shadows": 1,
    "kgb_gateway.dewey.sink": 1,
    "kgb_gateway.dewey.spool": 1,
    "kgb_gateway.dewey.store.*": 1,
    "kgb_gateway.dewey.verify": 1,
    "kgb_gateway.disk": 1,
    "kgb_gateway.journal": 1,
    "kgb_gateway.keyring": 1,
    "kgb_gateway.keys_edit": 1,
    "kgb_gateway.keys_file": 1,
    "kgb_gateway.log_writer": 1,
    "kgb_gateway.secret": 1,
    "kgb_gateway.segments": 1,
    "kgb_gateway.spooling": 1,
    "kgb_gateway.tail": 1,
    # Policies: the links of the chain.
    "fiedler_proxy.middlewares.*": 2,
    "kgb_gateway.middlewares.*": 2,
    # What the configuration may say.
    "fiedler_proxy.effective": 3,
    "fiedler_proxy.routing": 3,
    "fiedler_proxy.settings": 3,
    "kgb_gateway.settings": 3,
    # Doors: where a person or a program comes in.
    "fiedler_proxy": 4,
    "fiedler_proxy.__main__": 4,
    "fiedler_proxy.app": 4,
    "fiedler_proxy.options": 4,
    "fiedler_proxy.operating": 4,
    "fiedler_proxy.serving": 4,
    "kgb_gateway": 4,
    "kgb_gateway.__main__": 4,
    "kgb_gateway.app": 4,
    "kgb_gateway.commands.*": 4,
    "kgb_gateway.compare.*": 4,
    "kgb_gateway.compose": 4,
    "kgb_gateway.demo.*": 4,
    # For the authors of tests; nothing that is shipped to run may import it.
    "fiedler_proxy.testing.*": 5,
}
"""Imports go down, or stay on their floor; ``name.*`` is a package with all that is in it."""

IMPURE = frozenset(
    ("aiohttp", "asyncio", "concurrent", "http", "multiprocessing", "select", "selectors", "signal", "socket",
     "socketserver", "ssl", "subprocess", "threading", "uvloop")
)  # fmt: skip
"""What floor 0 may not import."""

MODULE_LINES = 400
FUNCTION_LINES = 60
LONGER = {
    "fiedler_proxy.exchange": (
        465,
        "what an exchange is, and how observers hear of it, told in place where every exchange does",
    ),
    "fiedler_proxy.lifecycle": (
        420,
        "how an exchange begins and ends, and what a gateway holds meanwhile: one life, one place",
    ),
    "fiedler_proxy.flow": (
        480,
        "one exchange on one connection, from its start to its end: a state machine, which half of it would not tell",
    ),
    "fiedler_proxy.server": (510, "the one door to what aiohttp keeps private: cut in two, there would be two doors"),
    "fiedler_proxy.settings": (470, "the list of everything that can be set, and how it is read: one list, one place"),
    "fiedler_proxy.wire": (
        486,
        "one connection's state machine and the parser behind it: cut in two, each half would need all of the other",
    ),
}
"""Modules and functions (``module:function``) that are longer, up to how many lines, and why that reads better."""

AIOHTTP_DOORS = frozenset(("fiedler_proxy.server", "fiedler_proxy.wire"))
"""The two modules that may use what aiohttp calls private: a new aiohttp is checked against these."""

REFLECTION = ("getattr", "setattr", "hasattr", "delattr")

OWNERS = ("setup.cfg", "fiedler_proxy", "kgb_gateway", "tests", "deploy", "README.rst")
FOR_TOOLS = ("pyproject.toml", ".ci", ".gitignore", "LICENSE", "docs", "ruff.toml")
"""What lies at the top level: the owner's choice, and what a tool insists on."""


@attrs.frozen
class Import:
    """``module``: one of ours, or what stands behind ``from`` or ``import``; ``names``: what is taken from it."""

    module: str
    line: int
    names: tuple[str, ...] = ()


@attrs.frozen
class Module:
    """A module of ours, parsed."""

    name: str
    path: Path
    source: str
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def floor(self) -> int | None:
        """Its floor; None when the table does not know it."""
        return floor_of(self.name)

    def imports(self, known: frozenset[str]) -> Iterator[Import]:
        """Everything it imports, inside functions and for type checkers too."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(alias.name, node.lineno)
            elif isinstance(node, ast.ImportFrom):
                base = self._base(node)
                for alias in node.names:
                    whole = f"{base}.{alias.name}"
                    yield Import(whole if whole in known else base, node.lineno, (alias.name,))

    def _base(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        up = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*up, node.module] if node.module else up)


def floor_of(name: str) -> int | None:
    for pattern, floor in FLOORS.items():
        package = pattern.removesuffix(".*")
        if name == package or (pattern != package and name.startswith(package + ".")):
            return floor
    return None


def parse(name: str, source: str, path: Path) -> Module:
    return Module(name, path, source, ast.parse(source, str(path)))


def read_modules() -> Iterator[Module]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield parse(name, path.read_text(encoding="utf-8"), path)


MODULES = {module.name: module for module in read_modules()}
KNOWN = frozenset(MODULES)
each_module = pytest.mark.parametrize("module", MODULES.values(), ids=lambda module: module.name)


def own_imports(module: Module) -> list[Import]:
    """Its imports of other modules of the two packages."""
    return [found for found in module.imports(KNOWN) if found.module.split(".")[0] in PACKAGES]


def functions(module: Module) -> Iterator[tuple[str, int, ast.AST]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1, node


def private_doors(module: Module) -> Iterator[str]:
    """Uses of names that begin with an underscore on anything but ``self`` or ``cls``, and of aiohttp's submodules.

    A name that the module defines itself is its own matter.
    """
    own = {node.attr for node in ast.walk(module.tree) if isinstance(node, ast.Attribute) and _on_self(node)}
    own |= {name for name, _, _ in functions(module)}
    own |= {node.id for node in ast.walk(module.tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and not _on_self(node) and node.attr not in own:
            yield f"line {node.lineno}: .{node.attr}"
        elif isinstance(node, ast.Call) and (name := _reflected(node)):
            yield f"line {node.lineno}: {name!r} by reflection"
    for found in module.imports(KNOWN):
        if found.module.startswith("aiohttp.") and found.module.split(".")[1] not in ("web", "abc", "typedefs"):
            names = set(found.names) - set(web.__all__)  # what aiohttp.web offers is public, wherever it stands
            if names:
                yield f"line {found.line}: import of {', '.join(sorted(names))} from {found.module}"


def _reflected(node: ast.Call) -> str:
    """The private name that ``getattr`` and its like are asked for, if any."""
    if isinstance(node.func, ast.Name) and node.func.id in REFLECTION and len(node.args) > 1:
        name = node.args[1]
        if isinstance(name, ast.Constant) and isinstance(name.value, str) and _is_private(name.value):
            return name.value
    return ""


def _on_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


# Floors.


@each_module
def test_every_module_has_a_floor(module: Module) -> None:
    assert module.floor is not None, f"{module.name} is not in FLOORS of {__file__}: say where it belongs"


@pytest.mark.parametrize("name", FLOORS)
def test_the_table_names_what_is_there(name: str) -> None:
    assert name.removesuffix(".*") in KNOWN, f"{name} is gone: take it out of FLOORS"


def test_the_documentation_shows_the_house_as_it_is() -> None:
    page = (ROOT / "docs" / "design.rst").read_text(encoding="utf-8")
    names = {name.removesuffix(".*").split(".")[1] for name in KNOWN if "." in name}
    missing = [name for name in sorted(names) if not re.search(rf"\b{name}\b", page)]
    assert not missing, f"docs/design.rst does not show {missing}"


def test_the_table_names_no_module_twice() -> None:
    packages = [pattern.removesuffix(".*") for pattern in FLOORS if pattern.endswith(".*")]
    assert not [name for name in FLOORS for package in packages if name.startswith(package + ".") and name[-1] != "*"]


@each_module
def test_imports_go_down(module: Module) -> None:
    faults = [
        f"line {found.line}: {module.name} (floor {module.floor}) imports {found.module} (floor {floor})"
        for found in own_imports(module)
        if (floor := floor_of(found.module)) is not None and module.floor is not None and floor > module.floor
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "module", [m for m in MODULES.values() if m.name.startswith("fiedler_proxy")], ids=lambda m: m.name
)
def test_fiedler_never_imports_kgb(module: Module) -> None:
    assert not [found for found in module.imports(KNOWN) if found.module.split(".")[0] == "kgb_gateway"]


@pytest.mark.parametrize("module", [m for m in MODULES.values() if m.floor == 0], ids=lambda m: m.name)
def test_floor_0_is_pure(module: Module) -> None:
    assert not [found for found in module.imports(KNOWN) if found.module.split(".")[0] in IMPURE]


@pytest.mark.parametrize("module", [m for m in MODULES.values() if ".middlewares." in m.name], ids=lambda m: m.name)
def test_middlewares_never_import_each_other(module: Module) -> None:
    """They meet on the exchange."""
    assert not [found for found in own_imports(module) if ".middlewares" in found.module]


@each_module
def test_only_the_composition_knows_the_policy_of_fiedler(module: Module) -> None:
    if not module.name.startswith("kgb_gateway") or module.name == "kgb_gateway.compose":
        return
    assert not [found for found in own_imports(module) if found.module.startswith("fiedler_proxy.middlewares")]


def test_no_import_cycle() -> None:
    graph = {name: {found.module for found in own_imports(module)} & KNOWN - {name} for name, module in MODULES.items()}
    cycle = find_cycle(graph)
    assert not cycle, " imports ".join(cycle)


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """One cycle of ``graph`` (first node again at the end), or nothing."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for other in sorted(graph[node]):
            if found := walk(other, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


@each_module
def test_third_parties_are_the_declared_ones(module: Module) -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    options = parser["options"]["install_requires"] + parser["options.extras_require"]["speed"]
    declared = {re.split(r"[\s<>=;.]", line)[0].replace("-", "_") for line in options.split("\n") if line.strip()}
    tops = {found.module.split(".")[0] for found in module.imports(KNOWN)} - sys.stdlib_module_names - set(PACKAGES)
    declared |= {"compression"}  # of the standard library from 3.14 on
    allowed = declared | {"attr", "pytest"} if module.floor == 5 else declared
    assert tops <= allowed, f"{module.name} imports {sorted(tops - allowed)}: declare it in setup.cfg, or do without"


# Size and manners.


@each_module
def test_modules_stay_small(module: Module) -> None:
    limit, _ = LONGER.get(module.name, (MODULE_LINES, ""))
    lines = module.source.count("\n")
    assert lines <= limit, f"{module.name} has {lines} lines, more than {limit}: does it own two things?"


@each_module
def test_functions_stay_small(module: Module) -> None:
    faults = [
        f"{name} has {lines} lines"
        for name, lines, _ in functions(module)
        if lines > LONGER.get(f"{module.name}:{name}", (FUNCTION_LINES, ""))[0]
    ]
    assert not faults, f"{module.name}: {'; '.join(faults)}, more than {FUNCTION_LINES}"


def test_exceptions_are_needed_and_explained() -> None:
    for name, (limit, why) in LONGER.items():
        assert limit > FUNCTION_LINES, name
        assert len(why) > 20, name
        assert name.split(":")[0] in KNOWN, f"{name} is gone: take it out of LONGER"


@each_module
def test_no_global_statement(module: Module) -> None:
    assert not [node.lineno for node in ast.walk(module.tree) if isinstance(node, ast.Global)]


@each_module
def test_every_module_says_what_it_owns(module: Module) -> None:
    assert not module.source.strip() or ast.get_docstring(module.tree), f"{module.path} has no docstring"


@each_module
def test_private_doors_of_others_are_used_in_two_places_only(module: Module) -> None:
    if module.name not in AIOHTTP_DOORS:
        doors = list(private_doors(module))
        assert not doors, f"{module.path}: {'; '.join(doors)}"


# The top level.


def top_level() -> set[str]:
    """What is checked in; without git, what lies there and is not ignored."""
    if (ROOT / ".git").exists():
        command = ["git", "-C", str(ROOT), "ls-files", "-z"]
        listed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        return {name.split("/")[0] for name in listed.split("\0") if name}
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]
    return {p.name for p in ROOT.iterdir() if not any(fnmatch.fnmatch(p.name, pattern) for pattern in ignored)}


def test_the_top_level_is_the_owners() -> None:
    extra = sorted(top_level() - {*OWNERS, *FOR_TOOLS})
    assert not extra, f"{extra} at the top level, which the owner has fixed"


def test_pyproject_holds_nothing_but_the_build_system() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert re.findall(r"^\[(.*)\]$", text, re.MULTILINE) == ["build-system"]


def test_every_change_leaves_a_fragment() -> None:
    directory = ROOT / "docs" / "changes"
    fragments = [path for path in directory.iterdir() if path.name != "README.rst"]
    assert fragments
    for path in fragments:
        assert re.fullmatch(r"\d+\.(feature|fix|doc|removal|misc)(\.\d+)?\.rst", path.name), path.name
        assert path.read_text(encoding="utf-8").strip(), path.name


def test_typed_packages_say_so() -> None:
    assert all((ROOT / package / "py.typed").exists() for package in PACKAGES)


def test_what_is_not_python_is_installed_too() -> None:
    """setuptools takes the data of packages only, by the patterns in setup.cfg; a folder without ``__init__.py`` is part of its parent."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = [pattern.strip() for pattern in setup["options.package_data"]["*"].split(",")]
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.*"):
            if path.is_dir() or "__pycache__" in path.parts or path.suffix == ".py":
                continue
            home = next(parent for parent in path.parents if (parent / "__init__.py").exists())
            name = path.relative_to(home).as_posix()
            assert any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns), path


# The tests above can fail: what they look at is seen.

SAMPLE = '''"""Sample."""
import os.path
from fiedler_proxy import heads, errors as e
from . import pool
from .middlewares.guard import Guard
from aiohttp.web_protocol import RequestPayloadError, _ErrInfo

class Own:
    _mine: int = 0

    def _method(self, request, other):
        self._x = request._message
        other._mine = other._x
        return getattr(request, "_cache"), request.__class__

def late():
    import asyncio
'''


@pytest.fixture
def sample() -> Module:
    return parse("fiedler_proxy.sample", SAMPLE, ROOT / "fiedler_proxy" / "sample.py")


def test_imports_are_seen_whatever_their_form(sample: Module) -> None:
    assert [found.module for found in sample.imports(KNOWN)] == [
        "os.path",
        "fiedler_proxy.heads",
        "fiedler_proxy.errors",
        "fiedler_proxy.pool",
        "fiedler_proxy.middlewares.guard",
        "aiohttp.web_protocol",
        "aiohttp.web_protocol",
        "asyncio",
    ]


def test_relative_imports_of_a_package_start_in_it() -> None:
    package = parse("fiedler_proxy.testing", "from .peer import PeerLeft\n", ROOT / "fiedler_proxy/testing/__init__.py")
    assert [found.module for found in package.imports(KNOWN)] == ["fiedler_proxy.testing.peer"]


def test_private_doors_are_seen(sample: Module) -> None:
    assert list(private_doors(sample)) == [
        "line 12: ._message",
        "line 14: '_cache' by reflection",
        "line 6: import of _ErrInfo from aiohttp.web_protocol",
    ]


def test_a_cycle_is_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_an_unknown_module_has_no_floor() -> None:
    assert floor_of("fiedler_proxy.newcomer") is None
    assert floor_of("kgb_gateway.demo") == floor_of("kgb_gateway.demo.chat") == 4

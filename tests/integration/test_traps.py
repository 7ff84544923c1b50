"""The list of traps in README.rst may name no test that does not exist."""

import re
from pathlib import Path

HERE = Path(__file__).parent
LIST = (HERE / "README.rst").read_text()


def test_every_trap_of_the_list_has_its_test() -> None:
    listed = set(re.findall(r"``(test_trap_\w+)``", LIST))
    defined: set[str] = set()
    for path in HERE.glob("test_*.py"):
        defined |= set(re.findall(r"^ *(?:async )?def (test_trap_\w+)\(", path.read_text(), re.MULTILINE))
    assert len(listed) > 40
    assert listed - defined == set()


def test_every_file_of_the_list_is_there() -> None:
    named = set(re.findall(r"^``(test_\w+)``", LIST, re.MULTILINE))
    assert {name for name in named if not (HERE / f"{name}.py").is_file()} == set()

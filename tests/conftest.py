"""What every test may use, and the one rule of continuous integration: a missing Debian package is no excuse there."""

import os
import shutil
from collections.abc import Callable, Generator

import pytest

_PACKAGE = "Debian package"

Program = Callable[[str, str], str]


@pytest.fixture
def program() -> Program:
    """``program("nginx", "nginx-light")``: the path of a program, or a skip that names the Debian package to install."""

    def find(name: str, package: str) -> str:
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
        if path is None:
            pytest.skip(f"{name} is not here: install the {_PACKAGE} {package}")
        return path

    return find


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and os.environ.get("CI") and _PACKAGE in str(report.longrepr):
        report.outcome = "failed"
    return report

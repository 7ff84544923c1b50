"""The other end of the control sockets: every running gateway of this user, found and asked.

Owns how they are found. A socket behind which nobody listens is passed over.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import attrs

from fiedler_proxy.control import SUFFIX
from fiedler_proxy.sockets import short_name

SECONDS = 960.0
"""Longest wait for an answer: a preflight asks providers."""


@attrs.frozen
class Instance:
    """A running gateway, by its socket; its name and process id are in the name of that."""

    path: Path

    @property
    def name(self) -> str:
        """As configured with ``instance``."""
        return self.path.name.removesuffix(SUFFIX).rpartition(".")[0]

    @property
    def pid(self) -> str:
        """Its process."""
        return self.path.name.removesuffix(SUFFIX).rpartition(".")[2]


@attrs.frozen
class Said:
    """What one of them answered. ``error``: why it did not do what it was asked, "" where it did."""

    instance: Instance
    answer: Mapping[str, Any]
    error: str = ""


class Nobody(Exception):
    """No gateway runs here; the message says where was looked."""


def instances(directory: Path, name: str = "") -> list[Instance]:
    """Those in ``directory``, or the one called ``name``."""
    found = [Instance(path) for path in sorted(directory.glob(f"*{SUFFIX}"))]
    return [each for each in found if not name or each.name == name]


async def ask(
    asked: Sequence[Instance], method: str, path: str, said: Mapping[str, object] | None = None, program: str = ""
) -> list[Said]:
    """Ask each of ``asked``, one after the other; with ``program`` only those that are it. Nobody where none listens."""
    heard = []
    for instance in asked:
        try:
            answer = await _ask(instance, method, path, said, program)
        except (aiohttp.ClientConnectionError, OSError):
            continue
        if answer is not None:
            heard.append(answer)
    if not heard:
        raise Nobody
    return heard


async def _ask(
    instance: Instance, method: str, path: str, said: Mapping[str, object] | None, program: str
) -> Said | None:
    with short_name(instance.path) as short:
        timeout = aiohttp.ClientTimeout(total=SECONDS)
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(short), timeout=timeout) as session:
            if program:
                async with session.get("http://kgb/status") as response:
                    if (await response.json()).get("program") != program:
                        return None
            async with session.request(method, f"http://kgb{path}", json=said) as response:
                answer = await response.json()
                if response.status == 200:
                    return Said(instance, answer)
                faults = "".join(f"\n  {fault}" for fault in answer.get("faults", ()))
                return Said(instance, answer, f"{answer.get('error', response.status)}{faults}")


def ask_all(
    directories: Sequence[Path],
    name: str,
    method: str,
    path: str,
    said: Mapping[str, object] | None = None,
    program: str = "",
) -> list[Said]:
    """``ask`` of every instance in ``directories``, for a command. Nobody says where was looked."""
    try:
        found = [each for directory in directories for each in instances(directory, name)]
        return asyncio.run(ask(found, method, path, said, program))
    except Nobody:
        what = f"no gateway called {name!r} is running" if name else "no gateway is running"
        where = f"no socket in {' or '.join(map(str, directories))} answers"
        raise Nobody(
            f"{what}: {where}. As another user, or with another --data-dir or runtime_dir, it is elsewhere"
        ) from None

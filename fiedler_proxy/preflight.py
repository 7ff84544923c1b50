"""Preflight: configured requests go through a slot before it may be used, and must be answered like by the active one.

Owns what is compared: status, the headers a client acts upon, and whether a stream comes as a stream.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp
import attrs

from fiedler_proxy.exchange import PREFLIGHT
from fiedler_proxy.inner import InnerDoor, Reply
from fiedler_proxy.key_source import Key
from fiedler_proxy.provider import Place, header_for, native

COMPARED = ("content-type", "content-encoding", "cache-control", "anthropic-version", "openai-version")
"""Headers whose presence and value (parameters aside) must be the same."""

_STREAM = "text/event-stream"


@attrs.frozen
class Probe:
    """One request. ``key``: the name of a source, see ``key_source``."""

    name: str
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    key: str = ""

    def raw_headers(self, base: Path, environ: Mapping[str, str]) -> tuple[tuple[bytes, bytes], ...]:
        """The headers to send. LookupError when the key cannot be read."""
        sent = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
        names = {name.lower() for name in self.headers}
        if self.body and "content-type" not in names:
            sent.append((b"content-type", b"application/json"))
        if self.key:
            secret = Key(self.key, environ, base).read(0.0)
            dialect = native(self.path.partition("?")[0], names, bearer=False)
            place = {"anthropic": Place.X_API_KEY, "gemini": Place.X_GOOG_API_KEY}.get(dialect, Place.BEARER)
            sent.append(header_for(place, secret))
        return tuple(sent)


@attrs.frozen
class Finding:
    """How one probe went: ``differences``, none where the slot does as well as the active one."""

    probe: str
    status: int
    active_status: int
    differences: tuple[str, ...]


async def preflight(
    door: InnerDoor,
    probes: Sequence[Probe],
    slot: str,
    active: str,
    base: Path = Path(),
    environ: Mapping[str, str] = os.environ,
) -> list[Finding]:
    """Send each of ``probes`` through ``active`` and ``slot``."""
    findings = []
    for probe in probes:
        try:
            headers = probe.raw_headers(base, environ)
        except (LookupError, UnicodeEncodeError) as error:
            findings.append(Finding(probe.name, 0, 0, (f"it cannot be sent: {error.args[0]}",)))
            continue
        of_active, of_slot = await asyncio.gather(
            *(_ask(door, probe, headers, each) for each in (active, slot)),
        )
        findings.append(_finding(probe, of_slot, of_active))
    return findings


async def _ask(door: InnerDoor, probe: Probe, headers: tuple[tuple[bytes, bytes], ...], slot: str) -> Reply | str:
    try:
        return await door.ask(probe.method, probe.path, headers, probe.body, slot=slot, facts={PREFLIGHT: probe.name})
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return type(error).__name__


def _finding(probe: Probe, of_slot: Reply | str, of_active: Reply | str) -> Finding:
    if isinstance(of_slot, str):
        return Finding(probe.name, 0, 0, (f"no whole answer came: {of_slot}",))
    if isinstance(of_active, str):
        return Finding(probe.name, of_slot.status, 0, (f"the active slot gave no whole answer: {of_active}",))
    return Finding(probe.name, of_slot.status, of_active.status, tuple(differences(of_slot, of_active)))


def differences(reply: Reply, active: Reply) -> list[str]:
    """What a client would see of ``reply`` that ``active`` did not have."""
    found = []
    if reply.status != active.status:
        found.append(f"status {reply.status}, the active slot's is {active.status}")
    for name in COMPARED:
        mine, other = (each.header(name).partition(";")[0].strip() for each in (reply, active))
        if mine != other:
            found.append(f"{name} is {mine or 'missing'}, the active slot's is {other or 'missing'}")
    streams = [each.header("content-type").startswith(_STREAM) for each in (reply, active)]
    if all(streams) and active.pieces > 2 and reply.pieces == 1:
        found.append(f"the stream came at once, in one piece; the active slot's in {active.pieces}")
    if active.size and not reply.size:
        found.append("the body is empty")
    return found

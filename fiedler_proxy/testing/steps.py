"""The commands of a script that is a list: ``ScriptedUpstream([ReadHead(), Send(b"..."), Abort()])``."""

from typing import Protocol

import attrs

from fiedler_proxy.testing.connection import UpstreamConnection


class Waitable(Protocol):
    """An asyncio.Event, a point of a Rendezvous, or anything alike."""

    async def wait(self) -> object: ...


class Step:
    """One command; authors may add their own."""

    async def run(self, conn: UpstreamConnection) -> None:
        """Carry the command out on ``conn``."""
        raise NotImplementedError


@attrs.frozen
class ReadHead(Step):
    """Read the head of the next request."""

    async def run(self, conn: UpstreamConnection) -> None:
        await conn.request()


@attrs.frozen
class ReadBody(Step):
    """Read the rest of the body of the request read last."""

    async def run(self, conn: UpstreamConnection) -> None:
        await conn.requests[-1].body()


@attrs.frozen
class Send(Step):
    """Write raw bytes, flushed."""

    data: bytes

    async def run(self, conn: UpstreamConnection) -> None:
        await conn.send(self.data)


@attrs.frozen
class Garbage(Step):
    """Write bytes that are no HTTP."""

    data: bytes = b"\x00\xff\x16\x03 no HTTP, and no end of line either \r\r\n\n\r\n\r\n"

    async def run(self, conn: UpstreamConnection) -> None:
        await conn.send(self.data)


@attrs.frozen
class Wait(Step):
    """Wait for an event or a point of a Rendezvous."""

    event: Waitable

    async def run(self, conn: UpstreamConnection) -> None:
        await self.event.wait()


@attrs.frozen
class Stall(Step):
    """Do nothing until the gateway leaves or the server stops."""

    async def run(self, conn: UpstreamConnection) -> None:
        await conn.stall()


@attrs.frozen
class Abort(Step):
    """RST."""

    async def run(self, conn: UpstreamConnection) -> None:
        conn.abort()


@attrs.frozen
class Close(Step):
    """FIN."""

    async def run(self, conn: UpstreamConnection) -> None:
        conn.close()

"""The gateway knows its own connections by both ends: a stranger who shares one port with them is no loop."""

import sys

import pytest

from fiedler_proxy.testing import RawClient, ScriptedUpstream

from .helpers import relaying


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a test choose a port that is in use")
async def test_a_caller_whose_port_equals_that_of_an_upstream_connection_is_no_loop() -> None:
    """The kernel gives the same local port to connections with different destinations, sooner or later."""
    async with ScriptedUpstream() as up, relaying(up) as gate:
        async with gate.caller() as c:
            await c.get("/")
            await c.read_response()
        ours = up.connections[0].peer.transport.get_extra_info("peername")[1]
        async with RawClient(gate.address.host, gate.address.port, source_port=ours) as stranger:
            await stranger.get("/")
            assert (await stranger.read_response()).status == 200

"""The testing kit: for this project's tests and for authors of middlewares.

``ScriptedUpstream`` plays a provider, bad manners included; ``RawClient`` is a caller that hides nothing;
``Rendezvous`` orders them; ``start_app`` serves an application as production does; ``sse`` and ``load_stream`` make
event streams; ``check_middleware`` checks the contract of a link. Nothing here is imported by the gateway itself.
"""

from fiedler_proxy.testing.client import RawClient, ReceivedResponse
from fiedler_proxy.testing.conformance import ContractBroken, check_middleware
from fiedler_proxy.testing.connection import ReceivedRequest, UpstreamConnection
from fiedler_proxy.testing.messages import (
    BrokenMessage,
    BrokenRequest,
    BrokenResponse,
    MalformedMessage,
    chunk_bytes,
    head_bytes,
)
from fiedler_proxy.testing.peer import PeerLeft
from fiedler_proxy.testing.rendezvous import Rendezvous
from fiedler_proxy.testing.serving import Address, start_app
from fiedler_proxy.testing.steps import Abort, Close, Garbage, ReadBody, ReadHead, Send, Stall, Step, Wait
from fiedler_proxy.testing.streams import StreamStyle, load_stream, sse, sse_event
from fiedler_proxy.testing.upstream import Script, ScriptedUpstream, in_turn, respond, serve_forever

__all__ = [
    "Abort",
    "Address",
    "BrokenMessage",
    "BrokenRequest",
    "BrokenResponse",
    "Close",
    "ContractBroken",
    "Garbage",
    "MalformedMessage",
    "PeerLeft",
    "RawClient",
    "ReadBody",
    "ReadHead",
    "ReceivedRequest",
    "ReceivedResponse",
    "Rendezvous",
    "Script",
    "ScriptedUpstream",
    "Send",
    "Stall",
    "Step",
    "StreamStyle",
    "UpstreamConnection",
    "Wait",
    "check_middleware",
    "chunk_bytes",
    "head_bytes",
    "in_turn",
    "load_stream",
    "respond",
    "serve_forever",
    "sse",
    "sse_event",
    "start_app",
]

"""The same call made twice: directly to an upstream and through the gateway, with what each side saw of it.

Owns the comparison of what may not differ. It knows no SDK: a test hands in the call.
"""

from collections.abc import Awaitable, Callable, Sequence

import attrs

from fiedler_proxy.headers import HOP_BY_HOP
from fiedler_proxy.lifecycle import Link
from fiedler_proxy.testing import ReceivedRequest, Script, ScriptedUpstream
from fiedler_proxy.testing.steps import Step
from tests.integration.helpers import relaying

Call = Callable[[str], Awaitable[object]]
"""A call of a foreign client: gets the base URL, returns whatever its result comes down to."""

RANDOM = frozenset((b"idempotency-key", b"x-idempotency-key"))
"""Request headers of which clients make a new one for each call."""


@attrs.frozen
class Failure:
    """What a foreign client's exception tells its user. ``response``: status, end-to-end headers and body."""

    kind: str
    message: str
    request_id: object
    body: object
    response: object
    cause: str

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        response = getattr(error, "response", None)
        seen = None
        if response is not None:
            headers = [(name.lower(), value) for name, value in response.headers.raw]
            seen = response.status_code, [pair for pair in headers if pair[0] not in HOP_BY_HOP]
        return cls(
            f"{type(error).__module__}.{type(error).__name__}",
            str(error),
            getattr(error, "request_id", None),
            getattr(error, "body", None),
            seen,
            type(error.__cause__).__name__,
        )


@attrs.frozen
class Sent:
    """A request as it reached the upstream, without what ends at a hop."""

    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    @classmethod
    def of(cls, request: ReceivedRequest) -> "Sent":
        headers = tuple(
            (name, b"" if name.lower() in RANDOM else value)
            for name, value in request.headers
            if name.lower() not in HOP_BY_HOP
        )
        return cls(request.method, request.target, headers, bytes(request.arrived))


@attrs.frozen
class Meeting:
    """What came of one call: its result or failure, and every request that reached the upstream for it."""

    result: object
    sent: tuple[Sent, ...]

    @property
    def failure(self) -> Failure:
        """The result, which must be a failure."""
        assert isinstance(self.result, Failure), self.result
        return self.result


async def meet(call: Call, url: str, upstream: ScriptedUpstream) -> Meeting:
    before = len(upstream.requests)
    result: object
    try:
        result = await call(url)
    except Exception as error:
        result = Failure.of(error)
    return Meeting(result, tuple(map(Sent.of, upstream.requests[before:])))


async def same(script: Script | Sequence[Step], call: Call, *links: Link) -> Meeting:
    """Make ``call`` directly and through the gateway: AssertionError where anything differs; what came of it."""
    async with ScriptedUpstream(script) as upstream, relaying(upstream, *links) as serving:
        direct = await meet(call, upstream.url, upstream)
        relayed = await meet(call, serving.address.url, upstream)
    assert direct.sent, direct.result
    assert relayed.result == direct.result
    assert relayed.sent == direct.sent
    return relayed

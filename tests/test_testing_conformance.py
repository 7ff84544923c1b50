"""check_middleware: links that keep their contract pass, and each way of breaking it is named."""

import asyncio
from collections.abc import AsyncIterator
from typing import ClassVar

import attrs
import pytest
from aiohttp import web

from fiedler_proxy.errors import ExchangeError
from fiedler_proxy.lifecycle import EXCHANGE
from fiedler_proxy.server import ConnectionCut, Handler
from fiedler_proxy.testing import ContractBroken, check_middleware
from fiedler_proxy.testing.conformance import RULES


@web.middleware
@attrs.frozen
class Polite:
    """A link as it should be: it notes, adds a header, cleans up and hands back what it got."""

    label: str = "x"
    notes: list[str] = attrs.field(factory=list)

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        exchange = request[EXCHANGE]
        exchange.add_response_header("X-Label", self.label)
        try:
            return await handler(request)
        finally:
            self.notes.append(exchange.path)

    async def context(self, app: web.Application) -> AsyncIterator[None]:
        self.notes.append("started")
        yield
        self.notes.append("stopped")


@web.middleware
async def function(request: web.Request, handler: Handler) -> web.StreamResponse:
    return await handler(request)


@web.middleware
class Reader:
    reads_body: ClassVar[bool] = True

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        await request.read()
        return await handler(request)


@web.middleware
class Transformer:
    transforms: ClassVar[bool] = True

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        await request.read()
        response = await handler(request)
        return response if response.prepared else web.Response(text="changed")


class Undecorated:
    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return await handler(request)


@web.middleware
class Replacer:
    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        await handler(request)
        return web.Response()


@web.middleware
class SilentReader:
    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        await request.read()
        return await handler(request)


@web.middleware
class Thief:
    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        await request.content.readany()
        return await handler(request)


@web.middleware
class Swallower:
    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except asyncio.CancelledError:
            return web.Response()


@web.middleware
class Shielder:
    """Calls the next handler in a task of its own, which outlives the caller."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[web.StreamResponse]] = []

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        task = asyncio.ensure_future(handler(request))
        self.tasks.append(task)
        return await asyncio.shield(task)


@web.middleware
class Pacifier:
    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ExchangeError as error:
            return web.Response(status=error.status)


@web.middleware
class Mender:
    """Ends a broken answer as if it were whole."""

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ConnectionCut:
            response = web.StreamResponse()
            response._payload_writer = request._payload_writer
            response._eof_sent = False
            await request._payload_writer.write_eof()
            return response


@web.middleware
class Refuser:
    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if "x-key" not in request.headers:
            return web.Response(status=401)
        return await handler(request)


@web.middleware
class Buffer:
    """Takes the writing of the answer over and keeps it back until the end."""

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        writer = request._payload_writer
        kept: list[bytes] = []
        write = writer.write

        async def keep(chunk: bytes, **kwargs: object) -> None:
            kept.append(chunk)

        writer.write = keep  # type: ignore[method-assign,assignment]
        response = await handler(request)
        writer.write = write  # type: ignore[method-assign]
        for chunk in kept:
            await writer.write(chunk)
        return response


@pytest.mark.parametrize("link", [Polite(), function, Reader(), Transformer()], ids=["class", "function", "r", "t"])
async def test_links_that_keep_the_contract(link: Polite) -> None:
    assert await check_middleware(link) == ("decorated", *RULES)


async def test_the_context_of_a_link_is_entered_and_left() -> None:
    link = Polite()
    await check_middleware(link)
    assert link.notes[:3] == ["started", "/v1/messages", "stopped"]
    assert link.notes.count("started") == link.notes.count("stopped") == len(RULES)


@pytest.mark.parametrize(
    ("link", "rule", "why"),
    [
        (Undecorated(), "decorated", "@web.middleware"),
        (Replacer(), "same response", "must return the very response"),
        (SilentReader(), "no early read", "declare reads_body = True"),
        (Thief(), "no early read", "does not find the body"),
        (Buffer(), "no buffering", "holds back the first event"),
        (Swallower(), "cancellation", "swallows CancelledError: after its caller had left it answered 200"),
        (Shielder(), "cancellation", "not cancelled when the caller leaves"),
        (Pacifier(), "errors", "does not re-raise an ExchangeError of the next handler: it answered 502"),
        (Mender(), "broken stays broken", "as if it were whole"),
        (Refuser(), "same response", "answered 401 itself to the sample request"),
    ],
    ids=lambda value: type(value).__name__ if callable(value) else None,
)
async def test_links_that_break_the_contract(link: Refuser, rule: str, why: str) -> None:
    with pytest.raises(ContractBroken) as broken:
        await check_middleware(link, guard=0.3)
    assert any(fault.startswith(rule) and why in fault for fault in broken.value.faults), broken.value.faults
    assert str(broken.value).startswith(f"{type(link).__name__} breaks the contract of a middleware:\n- ")


async def test_only_the_broken_rule_is_named() -> None:
    with pytest.raises(ContractBroken) as broken:
        await check_middleware(Pacifier())
    assert len(broken.value.faults) == 1


async def test_a_sample_request_that_the_link_passes_on() -> None:
    await check_middleware(Refuser(), headers=[("X-Key", "k")], body=b"ab", target="/", method="PUT")

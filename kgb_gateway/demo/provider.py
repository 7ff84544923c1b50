"""The demo provider as an aiohttp application: paths, headers, pace.

Owns everything of the demo that is HTTP. What is said and in which shape is decided in pure modules beside it.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol

import attrs
from aiohttp import web

from kgb_gateway.demo import chat, messages, responses
from kgb_gateway.demo.reply import Ask, BadRequest, Event, Reply, compact, new_id, parse_body, reply_to

DEFAULT_PACE = 0.04
"""Seconds between two words."""

MAX_BODY = 256 * 1024**2
"""Bytes of a request body, which the demo holds in memory."""

ANTHROPIC_MODELS = ("claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-4-5")
OPENAI_MODELS = ("gpt-6-sol", "gpt-5.5", "gpt-5-mini")
REQUEST_LIMIT = 4000

_GREETING = (
    "This is kgb's built-in demo provider, not a model. POST /v1/messages, /v1/chat/completions or /v1/responses.\n"
)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def create_demo_app(pace: float = DEFAULT_PACE) -> web.Application:
    """The provider; ``pace`` is the pause in seconds before each word, 0 for none. ValueError when it is negative."""
    if not pace >= 0:
        raise ValueError(f"the pace must be 0 or more seconds, not {pace!r}")
    app = web.Application(client_max_size=MAX_BODY)
    app.router.add_route("*", "/{path:.*}", _Provider(pace).handle)
    return app


class _Dialect(Protocol):
    """What a dialect module offers."""

    def read(self, body: bytes) -> Ask: ...
    def document(self, ask: Ask, reply: Reply) -> dict[str, Any]: ...
    def events(self, ask: Ask, reply: Reply) -> Iterator[Event]: ...
    def error(self, status: int, message: str, param: str | None, request_id: str) -> dict[str, Any]: ...
    def model(self, name: str) -> dict[str, Any]: ...
    def model_page(self, names: tuple[str, ...]) -> dict[str, Any]: ...


def _dialect(request: web.Request) -> _Dialect:
    """Who is asking, by header first: both vendors have a ``/v1/models``."""
    if "anthropic-version" in request.headers or request.path.startswith("/v1/messages"):
        return messages
    return responses if request.path.startswith("/v1/responses") else chat


@attrs.frozen
class _Provider:
    pace: float
    counter: Iterator[int] = attrs.field(factory=itertools.count)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        routes = self.routes(request.path)
        method = "GET" if request.method == "HEAD" else request.method
        try:
            if not routes:
                return self.error(request, 404, f"Unknown path {request.path}: the demo provider has no such resource.")
            if method not in routes:
                return self.error(request, 405, f"{request.path} does not answer {request.method}.")
            return await routes[method](request)
        except BadRequest as error:
            return self.error(request, 400, error.message, error.param)
        except web.HTTPRequestEntityTooLarge:
            return self.error(request, 413, f"The request exceeds {MAX_BODY} bytes.")

    def routes(self, path: str) -> dict[str, _Handler]:
        """What ``path`` answers, by method; nothing for an unknown path."""
        if path.startswith("/v1/models/"):
            return {"GET": self.model}
        known: dict[str, dict[str, _Handler]] = {
            "/": {"GET": self.root},
            "/v1/messages": {"POST": self.answer},
            "/v1/messages/count_tokens": {"POST": self.count_tokens},
            "/v1/chat/completions": {"POST": self.answer},
            "/v1/responses": {"POST": self.answer, "GET": self.upgrade},
            "/v1/models": {"GET": self.models},
        }
        return known.get(path, {})

    async def root(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text=_GREETING, headers=self.headers(request))

    async def models(self, request: web.Request) -> web.StreamResponse:
        dialect = _dialect(request)
        names = ANTHROPIC_MODELS if dialect is messages else OPENAI_MODELS
        return self.json(request, dialect.model_page(names))

    async def model(self, request: web.Request) -> web.StreamResponse:
        return self.json(request, _dialect(request).model(request.path.removeprefix("/v1/models/")))

    async def upgrade(self, request: web.Request) -> web.StreamResponse:
        """426 makes clients that try the WebSocket of the Responses API fall back to POST at once."""
        return self.error(request, 426, "The demo provider speaks no WebSocket; use POST.")

    async def count_tokens(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        parse_body(body)
        return self.json(request, {"input_tokens": max(1, len(body) // 4)})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        dialect = _dialect(request)
        ask = dialect.read(await request.read())
        reply = reply_to(ask)
        if ask.streams:
            return await self.stream(request, dialect.events(ask, reply))
        await asyncio.sleep(self.pace)
        return self.json(request, dialect.document(ask, reply))

    async def stream(self, request: web.Request, events: Iterator[Event]) -> web.StreamResponse:
        response = web.StreamResponse(headers=self.headers(request))
        response.headers["Content-Type"] = "text/event-stream; charset=utf-8"
        response.headers["Cache-Control"] = "no-cache"
        await response.prepare(request)
        try:
            for event in events:
                if event.paced and self.pace:
                    await asyncio.sleep(self.pace)
                await response.write(event.encode())
        except ConnectionResetError:
            pass  # The caller has gone; nobody is left to tell.
        return response

    def json(self, request: web.Request, document: object, status: int = 200, request_id: str = "") -> web.Response:
        headers = self.headers(request, request_id)
        headers["Content-Type"] = "application/json"
        return web.Response(body=compact(document).encode(), status=status, headers=headers)

    def error(self, request: web.Request, status: int, message: str, param: str | None = None) -> web.Response:
        request_id = new_id("req_demo")
        document = _dialect(request).error(status, message, param, request_id)
        response = self.json(request, document, status, request_id)
        if status == 426:
            response.headers["Upgrade"] = "websocket"
        return response

    def headers(self, request: web.Request, request_id: str = "") -> dict[str, str]:
        """What the vendors send beside the content: ids and rate limits, which differ from answer to answer."""
        request_id = request_id or new_id("req_demo")
        left = str(REQUEST_LIMIT - 1 - next(self.counter) % REQUEST_LIMIT)
        common = {"Server": "kgb-demo"}
        if _dialect(request) is not messages:
            return common | {
                "x-request-id": request_id,
                "openai-version": "2020-10-01",
                "openai-processing-ms": "1",
                "x-ratelimit-limit-requests": str(REQUEST_LIMIT),
                "x-ratelimit-remaining-requests": left,
                "x-ratelimit-reset-requests": "60s",
            }
        return common | {
            "request-id": request_id,
            "anthropic-organization-id": "kgb-demo",
            "anthropic-ratelimit-requests-limit": str(REQUEST_LIMIT),
            "anthropic-ratelimit-requests-remaining": left,
            "anthropic-ratelimit-requests-reset": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 60)),
        }

"""pin_model: every request gets one model, whatever it asked for."""

import json
from typing import ClassVar

import attrs
from aiohttp import web

from fiedler_proxy import EXCHANGE, Handler


@web.middleware
@attrs.frozen
class PinModel:
    """``model``: what stands in the ``model`` field of every JSON body that goes upstream."""

    model: str

    after: ClassVar[tuple[str, ...]] = ("auth",)
    transforms: ClassVar[bool] = True

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method == "POST" and request.content_type == "application/json":
            body = json.loads(await request.read())
            body["model"] = self.model
            request[EXCHANGE].replace_request_body(json.dumps(body).encode())
        return await handler(request)

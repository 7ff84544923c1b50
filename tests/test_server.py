"""The door to aiohttp's server: every private name that ``fiedler_proxy/server.py`` uses, with the shape it relies on.

An aiohttp that changes one of them fails here, by its name, and not in production by a mystery.
"""

import ast
import asyncio
import collections
import gzip
import inspect
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import BadHttpMessage, InvalidURLError, LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import StreamWriter
from aiohttp.streams import StreamReader
from aiohttp.test_utils import TestServer
from aiohttp.web_protocol import RequestHandler, _ErrInfo
from aiohttp.web_urldispatcher import UrlMappingMatchInfo

from fiedler_proxy import server
from fiedler_proxy.lifecycle import EXCHANGE, Gateway, create_application
from fiedler_proxy.server import (
    CallerConnection,
    OwnResponse,
    RelayResponse,
    UpgradedReader,
    c_parser_in_use,
    caller_connection,
    raw_message,
    take_buffered,
)
from fiedler_proxy.sockets import caller_has_left
from fiedler_proxy.testing import Address, RawClient, start_app
from fiedler_proxy.upstream import parse_upstream

PRIVATE: dict[str, tuple[type, str]] = {
    # name in server.py: where aiohttp keeps it, and what server.py does with it
    "_messages": (RequestHandler, "a deque of (message, payload): what was parsed and is not served yet"),
    "_current_request": (RequestHandler, "the request being served, or None"),
    "_request_handler": (RequestHandler, "the entrance"),
    "_request_factory": (RequestHandler, "makes a request of a message"),
    "_request_in_progress": (RequestHandler, "whether a shutdown has to wait"),
    "_handler_waiter": (RequestHandler, "the future of a shutdown that waits"),
    "_task_handler": (RequestHandler, "the task that the end of the connection cancels"),
    "_manager": (RequestHandler, "the server; None once the connection is lost"),
    "_parser": (BaseProtocol, "told when a message is taken, so that it goes on"),
    "_msg_queue_resume_size": (RequestHandler, "how many queued messages let a held transport go on"),
    "_resume_reading_if_drained": (RequestHandler, "lets a transport go on that a full queue held"),
    "_make_error_handler": (RequestHandler, "answers what never became a request"),
    "_close": (RequestHandler, "no further request is served"),
    "_force_close": (RequestHandler, "nothing is"),
    "_keepalive": (RequestHandler, "whether the connection stays for another request"),
    "_keepalive_handle": (RequestHandler, "the timer of an idle connection"),
    "_keepalive_timeout": (RequestHandler, "seconds that a connection may be idle"),
    "_next_keepalive_close_time": (RequestHandler, "when an idle connection ends"),
    "_process_keepalive": (RequestHandler, "overridden: what that timer calls"),
    "_lingering_time": (RequestHandler, "seconds for the rest of an upload"),
    "_task": (web.BaseRequest, "what request.task returns, and a closing connection cancels"),
    "_finish": (web.BaseRequest, "closes the files of a form that a link has read"),
    "_client_max_size": (web.Application, "the most that a link may read of a body"),
    "_upgraded": (BaseProtocol, "whether the caller asked for a protocol that aiohttp knows to switch to"),
    "_reading_paused": (BaseProtocol, "whether flow control holds the transport"),
    "_buffer_paused": (BaseProtocol, "whether a full queue holds the transport"),
    "_drain_helper": (BaseProtocol, "waits until the transport takes bytes again"),
    "_payload_writer": (web.Request, "the StreamWriter of a request's response"),
    "_message": (web.Request, "the RawRequestMessage: raw headers and target"),
    "_match_info": (web.Request, "set before the entrance, so that no router is asked"),
    "_version": (web.Request, "set to answer in a version of ours"),
    "_read_bytes": (web.Request, "the body once a link has read it"),
    "_payload": (web.Request, "the StreamReader of the body"),
    "_state": (web.StreamResponse, "what a link keeps with a response"),
    "_status": (web.StreamResponse, "what status returns"),
    "_reason": (web.StreamResponse, "what reason returns"),
    "_protocol": (web.Request, "the connection it came over"),
    "_on_chunk_sent": (StreamWriter, "called with every body chunk before it is written"),
    "_headers": (web.StreamResponse, "what headers returns: overridden, made when asked for"),
    "_keep_alive": (web.StreamResponse, "whether the connection stays"),
    "_eof_sent": (web.StreamResponse, "write_eof does nothing once it is True"),
    "_body_length": (web.StreamResponse, "for access logs"),
    "_prepare_headers": (web.StreamResponse, "overridden: no Server header"),
    "_loop": (web.Server, "the loop of a server"),
    "_kwargs": (web.Server, "what every connection is made with"),
    "_set_loop": (web.Application, "called by _make_handler"),
    "_make_handler": (web.Application, "overridden: the server is ours"),
    "_make_request": (web.Application, "overridden: the request's class is ours"),
    "_handle": (web.Application, "what the one route is made of; never called"),
}
"""Every private name of aiohttp in ``server.py``."""


def own_names(tree: ast.Module) -> set[str]:
    """Private names that server.py itself defines: functions, classes, and attributes of its own classes."""
    names = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    names |= {"_log", "_raw", "_read", "_sink", "_eof", "_entrance", "_match", "_route", "_server_options"}
    names |= {"_poison_uploads", "_context", "_serving", "_serve", "_serve_next", "_served", "_linger"}
    return names


def used_names() -> set[str]:
    """Private attributes, overridden methods and imports in server.py."""
    tree = ast.parse(Path(inspect.getfile(server)).read_text("utf-8"))
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            used.add(node.attr)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            used.add(node.name)
    private = {name for name in used if name.startswith("_") and not name.startswith("__")}
    return private - own_names(tree)


class TestTheDoor:
    def test_every_private_name_is_on_the_list(self) -> None:
        assert used_names() == set(PRIVATE), "server.py and the list of aiohttp's private names differ"

    def test_no_other_module_uses_a_private_name_of_aiohttp(self) -> None:
        """An attribute of somebody else's object: anything._name where anything is not self or cls."""
        package = Path(inspect.getfile(server)).parent
        for path in sorted(package.rglob("*.py")):
            if path.name == "server.py" or "testing" in path.parts:
                continue
            tree = ast.parse(path.read_text("utf-8"))
            strange = {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and node.attr in PRIVATE and not isinstance(node.value, ast.Name)
            }
            assert strange <= {"_loop", "_keep_alive"}, f"{path.name} uses {strange}"

    @pytest.mark.parametrize("name", PRIVATE)
    def test_aiohttp_has_it(self, name: str) -> None:
        owner, purpose = PRIVATE[name]
        known = set(dir(owner)) | set(getattr(owner, "ATTRS", ())) | set(inspect.getsource(owner).split())
        known |= {word.partition(".")[2].rstrip(":") for word in known if word.startswith("self.")}
        assert name in known, f"aiohttp's {owner.__name__} has lost {name}: {purpose}"

    def test_the_c_parser_is_in_use(self) -> None:
        assert c_parser_in_use()


def parameters(function: Callable[..., object]) -> list[str]:
    return list(inspect.signature(function).parameters)


class TestSignatures:
    """What we override or call must still be called, and be callable, the same way."""

    @pytest.mark.parametrize(
        ("function", "expected"),
        [
            (RequestHandler.handle_error, ["self", "request", "status", "exc", "message"]),
            (RequestHandler.connection_lost, ["self", "exc"]),
            (RequestHandler.data_received, ["self", "data"]),
            (RequestHandler.resume_writing, ["self"]),
            (RequestHandler.set_parser, ["self", "parser", "data_received_cb"]),
            (RequestHandler.connection_made, ["self", "transport"]),
            (RequestHandler.start, ["self"]),
            (RequestHandler.finish_response, ["self", "request", "resp", "start_time"]),
            (RequestHandler._process_keepalive, ["self"]),
            (RequestHandler._make_error_handler, ["self", "err_info"]),
            (RequestHandler._resume_reading_if_drained, ["self"]),
            (BaseProtocol._drain_helper, ["self"]),
            (web.Application._set_loop, ["self", "loop"]),
            (web.Application._handle, ["self", "request"]),
            (web.Application._make_handler, ["self", "loop", "access_log_class", "kwargs"]),
            (web.Application._make_request, ["self", "message", "payload", "protocol", "writer", "task", "_cls"]),
            (web.Server.__init__, ["self", "handler", "request_factory", "handler_cancellation", "loop", "kwargs"]),
            (web.Server.__call__, ["self"]),
            (web.StreamResponse._prepare_headers, ["self"]),
            (web.StreamResponse.__init__, ["self", "status", "reason", "headers", "_real_headers"]),
            (web.BaseRequest.read, ["self"]),
            (UrlMappingMatchInfo.__init__, ["self", "match_dict", "route"]),
            (UrlMappingMatchInfo.add_app, ["self", "app"]),
            (UrlMappingMatchInfo.freeze, ["self"]),
            (StreamReader.read_nowait, ["self", "n"]),
            (StreamReader.set_exception, ["self", "exc", "exc_cause"]),
            (StreamReader.is_eof, ["self"]),
            (StreamReader.exception, ["self"]),
        ],
        ids=lambda value: value.__qualname__ if callable(value) else "",
    )
    def test_it_is_as_expected(self, function: Callable[..., object], expected: list[str]) -> None:
        own = [name for name in parameters(function) if name not in ("_cancel", "_sentinel")]
        assert own == expected, f"aiohttp's {function.__qualname__} has changed"

    def test_the_options_of_a_connection_exist(self) -> None:
        """A wrong one would be reported by every single connection."""
        options = set(parameters(RequestHandler.__init__))
        assert options >= {"access_log", "auto_decompress", "debug", "logger", "read_bufsize", "max_headers",
                           "lingering_time", "keepalive_timeout", "max_line_size", "max_field_size"}  # fmt: skip

    def test_what_coroutines_are(self) -> None:
        for function in (BaseProtocol._drain_helper, web.StreamResponse._prepare_headers, web.BaseRequest.read):
            assert inspect.iscoroutinefunction(function), f"aiohttp's {function.__qualname__} is no coroutine any more"

    def test_an_error_message_has_its_exception(self) -> None:
        error = _ErrInfo(status=400, exc=ValueError(), message="m")
        assert (error.status, error.message) == (400, "m")
        assert isinstance(error.exc, ValueError)

    def test_slots_of_a_connection_can_be_added(self) -> None:
        """Without them a connection would carry a dictionary."""
        assert "__dict__" not in dir(RequestHandler)
        assert set(CallerConnection.__slots__) == {"_context", "_serving", "left_by", "resumed"}


@attrs.define
class Seen:
    """What the entrance found in a request; filled while it is served."""

    shapes: dict[str, str] = attrs.field(factory=dict)
    bodies: list[bytes] = attrs.field(factory=list)
    targets: list[str] = attrs.field(factory=list)
    headers: list[object] = attrs.field(factory=list)

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        connection, writer = caller_connection(request), request._payload_writer
        message: Any = request._message
        self.targets.append(raw_message(request).path)
        self.headers.append(raw_message(request).raw_headers)
        self.bodies.append(await request.read())
        assert isinstance(writer, StreamWriter)
        self.shapes = {
            "messages": type(connection._messages).__name__,
            "current": "the request" if connection._current_request is request else "another",
            "parser": type(connection._parser).__module__,
            "message": type(message).__module__,
            "pair": type(message.raw_headers).__name__ + "/" + type(message.raw_headers[0]).__name__,
            "payload": "content" if request._payload is request.content else "another",
            "output_size": type(writer.output_size).__name__,
            "on_chunk_sent": "ours" if writer._on_chunk_sent is not None else "none",
            "writing_paused": type(connection.writing_paused).__name__,
            "ends": type(connection.peername).__name__ + "/" + type(connection.sockname).__name__,
            "task": type(request.task).__name__,
            "left": str(caller_has_left(request)),
        }
        return OwnResponse(text="ok")


@pytest.fixture
async def seen() -> AsyncIterator[tuple[Seen, Address]]:
    gateway = Gateway(parse_upstream("http://127.0.0.1:9"))
    seen = Seen()
    async with start_app(create_application(gateway, [], seen)) as address:
        yield seen, address


class TestShapesInUse:
    async def test_a_request_is_made_of_what_we_think(self, seen: tuple[Seen, Address]) -> None:
        entrance, address = seen
        async with RawClient(address.host, address.port) as client:
            await client.post("/a%2Fb?", [(b"X-Odd", b"caf\xe9")], b"body")
            assert (await client.read_response()).body == b"ok"
        assert entrance.targets == ["/a%2Fb?"]
        assert entrance.bodies == [b"body"]
        assert (b"X-Odd", b"caf\xe9") in tuple(entrance.headers[0])  # type: ignore[arg-type]
        assert entrance.shapes == {
            "messages": collections.deque.__name__,
            "current": "the request",
            "parser": "aiohttp._http_parser",
            "message": "aiohttp._http_parser",
            "pair": "tuple/tuple",
            "payload": "content",
            "output_size": "int",
            "on_chunk_sent": "none",
            "writing_paused": "bool",
            "ends": "tuple/tuple",
            "task": "Task",
            "left": "False",
        }

    async def test_a_message_has_its_raw_parts(self) -> None:
        assert {"raw_headers", "path", "should_close", "upgrade", "chunked"} <= set(dir(RawRequestMessage))

    async def test_a_stream_counts_what_came(self) -> None:
        loop = asyncio.get_running_loop()
        stream = StreamReader(BaseProtocol(loop), 2**16, loop=loop)
        assert stream.total_bytes == 0
        stream.feed_data(b"abc")
        assert stream.total_bytes == 3
        assert take_buffered(stream) is None
        stream.feed_eof()
        assert take_buffered(stream) == b"abc"

    async def test_a_broken_body_is_not_a_whole_one(self) -> None:
        loop = asyncio.get_running_loop()
        stream = StreamReader(BaseProtocol(loop), 2**16, loop=loop)
        stream.feed_data(b"abc")
        stream.set_exception(ValueError())
        stream.feed_eof()
        assert take_buffered(stream) is None

    async def test_a_finished_response_is_not_ended_again(self) -> None:
        """aiohttp's own write_eof and prepare must leave the relay's response alone."""
        made: list[RelayResponse] = []

        async def relaying(request: web.Request) -> web.StreamResponse:
            response = RelayResponse(200, "OK", ((b"X", b"\xff"), (b"x", b"2")), True)
            connection = caller_connection(request)
            assert connection.transport is not None
            raw = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
            connection.transport.write(raw)
            request[EXCHANGE].head_sent = True
            response.finished(len(raw))
            made.append(response)
            return response

        gateway = Gateway(parse_upstream("http://127.0.0.1:9"))
        async with start_app(create_application(gateway, [], relaying)) as address:
            async with RawClient(address.host, address.port) as client:
                for _ in range(2):
                    await client.get("/")
                    response = await client.read_response()
                    assert response.raw_head + response.body == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
                assert client.unread == b""
        assert made[0].prepared
        assert made[0].headers.getall("X") == ["\udcff", "2"]
        assert made[0].status == 200


class TestMalformed:
    """What never became a request is answered in our shape, without an echo of its bytes, and logged without them."""

    @pytest.mark.parametrize(
        "raw",
        [
            b"GET / HTTP/1.1\r\nHost: s3cret\0\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\ns3cret s3cret: 1\r\n\r\n",
            b"s3cret / HTTP/1.1\r\n\r\n",
            b"GET / s3cret/1.1\r\n\r\n",
            b"GET s3cret HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /" + b"s3cret" * 2000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"s3cret" * 2000 + b"\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: s3cret\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00s3cret",
        ],
    )
    async def test_it_is_refused_and_not_quoted(
        self, seen: tuple[Seen, Address], raw: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        entrance, address = seen
        async with RawClient(address.host, address.port) as client:
            await client.send(raw)
            response = await client.read_response("GET")
            assert await client.closed() is False
        assert entrance.targets == []
        assert (response.status, response.version) == (400, (1, 1))
        assert response.header("content-type") == b"application/problem+json"
        assert response.header("x-kgb-error") == b"malformed_request"
        assert response.header("server") is None
        assert response.header("connection") == b"close"
        assert b"s3cret" not in response.body
        assert "s3cret" not in caplog.text

    @pytest.mark.parametrize(
        ("error", "why"),
        [
            (LineTooLong("s3cret", "8190"), "the request line or a header is too long"),
            (InvalidURLError("s3cret"), "the request target is invalid"),
            (BadHttpMessage("Invalid header token:\n\n  b's3cret'\n    ^"), "Invalid header token"),
            (BadHttpMessage("Bad thing: 's3cret'"), "BadHttpMessage"),
            (BadHttpMessage(""), "BadHttpMessage"),
        ],
    )
    def test_reasons_are_fixed_sentences(self, error: Any, why: str) -> None:
        assert server._why_malformed(error) == why


class TestTheSameEverywhere:
    """What the gateway needs of the server does not depend on who runs the application."""

    async def test_under_aiohttps_test_server(self) -> None:
        gateway, entrance = Gateway(parse_upstream("http://127.0.0.1:9")), Seen()
        body = gzip.compress(b"x" * 1000)
        async with TestServer(create_application(gateway, [], entrance)) as running:
            assert running.port is not None
            async with RawClient("127.0.0.1", running.port) as client:
                await client.post("/x//y", [("Content-Encoding", "gzip")], body)
                assert (await client.read_response()).header("server") is None
        assert entrance.bodies == [body]
        assert entrance.targets == ["/x//y"]

    async def test_wrong_arguments_of_a_runner_are_overruled(self) -> None:
        gateway, entrance = Gateway(parse_upstream("http://127.0.0.1:9")), Seen()
        body = gzip.compress(b"x" * 1000)
        app = create_application(gateway, [], entrance)
        async with start_app(app, auto_decompress=True, handler_cancellation=False) as address:
            async with RawClient(address.host, address.port) as client:
                await client.post("/", [("Content-Encoding", "gzip")], body)
                await client.read_response()
        assert entrance.bodies == [body]


def test_the_reader_of_an_upgrade_hands_everything_on() -> None:
    heard: list[object] = []
    reader = UpgradedReader(heard.append, lambda: heard.append("end"))
    assert reader.feed_data(b"\x81\x00") == (False, b"")
    reader.feed_eof()
    assert heard == [b"\x81\x00", "end"]

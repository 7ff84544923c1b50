"""A flow: one exchange on one upstream connection, from the request's head to the last byte of its answer. HOT PATH.

Bytes are pushed: what the upstream's protocol parses is told to the observers and written to
the caller in the same loop turn, with one write a turn, no task woken and no timer made. The
coroutine of the request only waits for the end. The law: a byte is told before it is written, the caller's reading
paces the upstream, and a response that broke never looks whole.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Protocol

from aiohttp import web

from fiedler_proxy import heads
from fiedler_proxy.answer import Answer, TurnedAway
from fiedler_proxy.errors import ExchangeError, Fault, body_too_large
from fiedler_proxy.exchange import Direction, Exchange, Outcome
from fiedler_proxy.framing import LAST_CHUNK, chunk
from fiedler_proxy.headers import shape_of
from fiedler_proxy.kept import Kept
from fiedler_proxy.lifecycle import Gateway, ResponseCut
from fiedler_proxy.server import (
    RelayResponse,
    caller_connection,
    drain,
    next_request_is_lost,
    read_body,
    take_buffered,
)
from fiedler_proxy.sockets import reset_after_delivery
from fiedler_proxy.tunnel import Tunnel
from fiedler_proxy.turn import LARGE
from fiedler_proxy.upload import Upload
from fiedler_proxy.wire import ResponseHead, Sink, UpstreamConnection, WireError

_log = logging.getLogger("kgb.relay")


class Judge(Protocol):
    """Decides who takes an answer. ``began``: the request is on its way; ``cap``: bytes of a body that are kept for another attempt."""

    began: bool
    cap: ClassVar[int]

    def takes(self, flow: "Flow", connection: UpstreamConnection, head: ResponseHead) -> Sink | None:
        """Who hears of the answer from here on; None leaves it to the flow, and the caller."""


Over = Callable[["Flow", Exception | None], None]
"""Hears that a flow has come to its end, once: whole, or with what ended it."""


class Flow:
    """One exchange on one upstream connection (a wire.Sink)."""

    __slots__ = ("_asked", "_broken", "_caller", "_chunked", "_connection", "_ended", "_exchange", "_farewell", "_framing", "_gateway", "_head", "_heard", "_judge",
                 "_large", "_out", "_over", "_queued", "_request", "_response", "_stopped", "_tunnel", "_untold", "_upload", "_whole",
                 "_written", "turn")  # fmt: skip

    def __init__(
        self,
        request: web.Request,
        exchange: Exchange,
        gateway: Gateway,
        connection: UpstreamConnection,
        head: heads.RequestHead,
    ) -> None:
        self._request = request
        self._exchange = exchange
        self._gateway = gateway
        self._connection = connection
        self._head = head
        self._caller = caller_connection(request)
        self._over: Over | None = None
        self._out: list[bytes] = []
        self._response: RelayResponse | None = None
        self._untold = False
        self._framing: heads.CallerFraming | None = None
        self._upload: Upload | None = None
        self._broken: Exception | None = None
        self._written = 0
        self._chunked = False
        self._ended = False
        self._stopped = False
        self._tunnel: Tunnel | None = None
        self._judge: Judge | None = None
        self._farewell = False
        self._queued = False
        self._large = False
        self._whole = b""
        self._asked: bytes | None = None
        self._heard = b""
        self.turn = self._caller.turn

    @property
    def exchange(self) -> Exchange:
        """Whose bytes these are."""
        return self._exchange

    @property
    def request(self) -> web.Request:
        """The request that it answers."""
        return self._request

    @property
    def finished(self) -> RelayResponse | None:
        """The response, where all of it is written and the caller keeps up; else it has to be waited for."""
        return None if self._caller.writing_paused else self._response

    # The way of an exchange: begun, over, settled, stopped.

    def start(self, judge: "Judge | None", over: Over) -> None:
        """Send the request, or begin to; ``over`` hears the end. ``judge`` is asked who takes the answer."""
        self._judge, self._over = judge, over
        exchange, upstream = self._exchange, self._exchange.upstream
        exchange.on_abort(self.abort)
        self._caller.resumed = self._connection.resume
        self._send_request()
        assert upstream is not None
        self._gateway.clock.watch(self, upstream.timeouts.shortest)

    def start_alone(self, judge: "Judge | None", over: Over) -> None:
        """``start``, where no task waits for the end: the caller's leaving is the connection's to tell."""
        self.start(judge, over)
        self._caller.lost = self._lost

    async def run(self, judge: "Judge | None" = None) -> web.StreamResponse:
        """``start``, and wait for the end of the response. ExchangeError before its head, ResponseCut after."""
        done = self._connection.loop.create_future()
        self.start(judge, partial(_tell, done))
        try:
            error = await done
        except asyncio.CancelledError:
            if self._tunnel is not None and self._caller.left_by is None and not self._gateway.stopping:
                self._farewell = True
                raise ResponseCut(Outcome.COMPLETED, "") from None
            raise
        return await self.settle(error)

    async def settle(self, error: Exception | None) -> web.StreamResponse:
        """What the exchange comes to when it is over: the response, as soon as the caller has taken it, or ``error``."""
        if error is None:
            if self._caller.writing_paused:
                await drain(self._caller)
            assert self._response is not None
            return self._response
        if isinstance(error, ResponseCut):
            self._exchange.ending, self._exchange.error_code = error.outcome, error.code  # whatever a link makes of it
            until_close = self._tunnel is not None or (self._framing is not None and self._framing.until_close)
            if until_close and self._caller.transport is not None:
                await reset_after_delivery(self._caller.transport)
        raise error

    def stop(self) -> None:
        """Let go of everything: after this nothing of the exchange moves."""
        if self._asked is not None:
            self._tell()
        self._stopped = True
        self._gateway.clock.forget(self)
        if self._upload is not None:
            self._upload.stop()
        self._caller.resumed = self._caller.lost = None
        self._exchange.on_abort(None)
        if self._tunnel is not None:
            self._tunnel.stop()
        if self._farewell:
            self._connection.leave()
        else:
            self._cut()

    def _cut(self) -> None:
        """The connection goes; not where the answer is whole, since it may serve another exchange by now."""
        if not self._ended:
            self._connection.abort()

    def abort(self, outcome: Outcome) -> None:
        """End the exchange from outside (drain, kill)."""
        self._exchange.ending = outcome
        stopping = ExchangeError("gateway_stopping", "The gateway is stopping.", status=503, fault=Fault.GATEWAY)
        self.fail(ResponseCut(outcome, "gateway_stopping") if self._exchange.head_sent else stopping)

    def fail(self, error: Exception) -> None:
        """End the exchange with ``error``; whatever arrived was or will be delivered."""
        over, self._over = self._over, None
        if over is None:
            return
        if self._exchange.head_sent and isinstance(error, ExchangeError):
            outcome = Outcome.TIMED_OUT if error.status in (504, 408) else Outcome.UPSTREAM_BROKE
            if error.fault is Fault.CALLER and error.status != 408:
                outcome = Outcome.REFUSED
            error = ResponseCut(outcome, error.code)
        over(self, error)

    async def play(self, answer: "Answer") -> web.StreamResponse:
        """Give the caller an answer that was put aside, as if it came now."""
        done = self._connection.loop.create_future()
        self._over = partial(_tell, done)
        self.on_head(answer.head)
        for data in answer.body:
            self.on_body(data)
        self.on_end()
        self.on_turn()
        return await self.settle(await done)

    def turned_away(self, answer: "Answer") -> None:
        """The upstream's ``answer``, which is whole, is put aside: another one is asked. Its connection is free."""
        self._ended = True
        self.fail(TurnedAway(answer))

    def _send_request(self) -> None:
        request, exchange, connection, head = self._request, self._exchange, self._connection, self._head
        held, kept = exchange.held_body, exchange.kept
        told = held is not None or (kept is not None and kept.told) or exchange.replay is not None
        connection.begin(self, exchange.method, head.upgrade)
        body = whole = b""
        if head.length or head.chunked:
            at_hand = held if held is not None else exchange.request_body
            if at_hand is None:
                at_hand = exchange.replay if exchange.replay is not None else self._at_hand(kept, head)
            if at_hand is None:
                self._tell_head(told)
                if kept is None and self._judge is not None:
                    kept = exchange.kept = Kept(self._judge.cap)
                    kept.told = True
                self._upload = Upload(self, request, exchange, connection, head, self._gateway.body_limit)
                connection.write(head.raw)
                self._upload.start()
                return
            whole = at_hand
            if self._gateway.body_limit and len(whole) > self._gateway.body_limit:
                self._tell_head(told)
                raise body_too_large(self._gateway.body_limit)
            body = (chunk(whole) if whole else b"") + LAST_CHUNK if head.chunked else whole
        if told or not whole:
            self._tell_head(told)
        else:
            self._asked = whole
            if kept is not None:
                kept.told = True
        self._whole = head.raw + body
        self.turn.write(self._write_request, self._tell)

    def _tell_head(self, told: bool) -> None:
        """Observers hear of the request, unless they have."""
        if not told:
            self._exchange.tell_request_head()
            if self._exchange.kept is not None:
                self._exchange.kept.told = True

    def _write_request(self) -> None:
        """The request, which is whole."""
        if self._asked is not None:
            self._tell()
        whole, self._whole = self._whole, b""
        self._connection.write(whole)
        self._connection.finish_request()

    def _at_hand(self, kept: Kept | None, head: heads.RequestHead) -> bytes | None:
        """The body, where all of it is here."""
        if kept is not None and (kept.size or kept.whole):
            return kept.body() if kept.whole else None
        whole = read_body(self._request)
        if whole is None and not head.expect:
            whole = take_buffered(self._request.content)
        if self._judge is not None:
            self._exchange.replay = whole
        return whole

    # wire.Sink: from within the upstream's loop turn.

    def on_interim(self, head: ResponseHead) -> None:
        if self._exchange.version < (1, 1) or (head.status == 100 and not self._head.expect):
            return
        if head.status == 100 and (self._upload is None or not self._upload.may_continue()):
            return  # whoever sent or read the body before has been told
        self._out.append(heads.interim_head(head.status, head.reason, head.headers))

    def on_head(self, head: ResponseHead) -> None:
        if self._judge is not None:
            judge, self._judge = self._judge, None
            other = judge.takes(self, self._connection, head)
            if other is not None:
                self._connection.hand_over(other)
                return
        exchange, request = self._exchange, self._request
        headers = heads.relayed_headers(exchange, head.headers, self._gateway.say, head.shape)
        if head.status == 101:
            headers = heads.switching_headers(headers, head.headers)
            self._tunnel = Tunnel(request, exchange, self._connection, self._left)
        framing = heads.caller_framing(exchange.version, head.decoder, bool(exchange.transforms))
        self._framing, self._chunked = framing, framing.chunked
        keep = request.keep_alive and not (framing.until_close or self._gateway.draining or self._tunnel)
        if next_request_is_lost(request) or (self._upload is not None and self._upload.unasked):
            keep = False  # the caller waits for a 100 that will not come: where its next request begins is unclear
        shape = shape_of(headers)
        try:
            if self._tunnel is not None:
                raw = heads.switching_head(head.reason, headers)
            else:
                raw = heads.response_head(exchange.version, head.status, head.reason, headers, framing, keep, shape)
        except ValueError:
            self._cut()
            self.fail(_broken(WireError("upstream_garbage", "a header of the answer holds CR, LF or NUL"), exchange))
            return
        exchange.answered(head.status, head.reason, headers, shape)
        exchange.head_sent = self._untold = True  # told with what comes behind it in this turn, or before it is written
        self._response = RelayResponse(head.status, head.reason, headers, keep)
        self._out.append(raw)
        if self._tunnel is not None and self._flush():
            self._tunnel.open()

    def on_body(self, data: bytes) -> None:
        exchange = self._exchange
        if self._tunnel is not None:
            exchange.tell_tunnel_bytes(Direction.TO_CALLER, data)
            self._out.append(data)
            return
        if exchange.transforms:
            data = self._transformed(data)
        if data:
            self._body(data)

    def _body(self, data: bytes) -> None:
        if len(data) > LARGE:
            self._large = True
        if self._untold:
            self._heard += data  # told with the head, before anything of the turn is written
        else:
            self._exchange.tell_response_bytes(data)
        if self._chunked:
            self._out += (b"%x\r\n" % len(data), data, b"\r\n")
        else:
            self._out.append(data)

    def _tell(self) -> None:
        """Observers hear of what goes on next, before it does."""
        asked, heard = self._asked, self._heard
        if asked is not None:
            self._asked = None
            self._exchange.tell_request_start(asked)
        if self._untold:
            self._untold, self._heard = False, b""
            if heard:
                self._exchange.tell_response_start(heard)
            else:
                self._exchange.tell_response_head()

    def _transformed(self, data: bytes, *, end: bool = False) -> bytes:
        try:
            for transform in self._exchange.transforms:
                data = transform.feed(data) if data else b""
                if end:
                    data += transform.end()
        except Exception as error:
            _log.error("exchange %s: a transform raised %s", self._exchange.id, type(error).__name__)
            self._cut()
            self.fail(ResponseCut(Outcome.GATEWAY_FAULT, "transform_failed"))
            return b""
        return data

    def on_end(self) -> None:
        if self._exchange.transforms and (rest := self._transformed(b"", end=True)):
            self._body(rest)
        self._ended = True
        if self._tunnel is not None:
            self._tunnel.stop()
        self._caller.resumed = None  # the connection may serve another exchange from now on
        if self._chunked:
            self._out.append(LAST_CHUNK)

    def on_broken(self, error: WireError) -> None:
        self._broken = error

    def on_turn(self) -> None:
        if self._stopped or self._queued:
            return
        if self._out and not self._large:
            self._queued = True
            self.turn.write(self._write_out, self._tell if self._untold else None)
        else:
            self._large = False
            self._write_out()

    def _write_out(self) -> None:
        """What came in this turn goes to the caller, and the exchange on to its end."""
        self._queued = False
        if self._stopped or (self._out and not self._flush()):
            return
        if self._broken is not None:
            self.fail(_broken(self._broken, self._exchange))
        elif self._ended and self._over is not None:
            if self._response is not None:
                self._response.finished(self._written)
            over, self._over = self._over, None
            over(self, None)

    def on_writable(self) -> None:
        if self._upload is not None:
            self._upload.writable()
        if self._tunnel is not None:
            self._tunnel.writable()

    def _flush(self) -> bool:
        if self._untold:
            self._tell()
        out = self._out
        transport = self._caller.transport
        if transport is None or transport.is_closing():
            out.clear()
            self._left()
            return False
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        transport.write(data)
        self._written += len(data)
        if self._caller.writing_paused and not self._ended:
            self._connection.pause()
        return True

    def _lost(self) -> None:
        """The caller is gone, and no task is there to be cancelled."""
        self._cut()
        self.fail(ConnectionResetError("the caller left"))

    def _left(self) -> None:
        self._cut()
        self.fail(ResponseCut(Outcome.CALLER_LEFT, "caller_left"))

    # The clock looks at when bytes last moved.

    def _timeouts(self) -> tuple[float, float]:
        upstream = self._exchange.upstream
        assert upstream is not None
        return upstream.timeouts.first_byte, upstream.timeouts.idle

    def look(self, now: float) -> None:
        """clock.Watched: see whether bytes have stood still for too long."""
        if self._tunnel is not None or self._over is None:
            return  # an open tunnel may be silent for as long as both ends like
        first_byte, idle = self._timeouts()
        connection, upload = self._connection, self._upload
        if upload is not None and upload.waits_for_caller and not self._exchange.head_sent:
            limit, since, code, status, what = (
                idle,
                upload.last_byte,
                "request_timeout",
                408,
                "the request body stalled",
            )
        elif self._exchange.head_sent:
            since = now if connection.reading_paused else connection.last_byte
            limit, code, status, what = idle, "idle_timeout", 504, "the upstream fell silent"
        else:
            since = max(connection.last_byte, upload.last_byte if upload is not None else 0.0)
            limit, code, status, what = first_byte, "first_byte_timeout", 504, "the upstream did not answer"
        if limit and now >= since + limit:
            self._cut()
            self.fail(_timeout(code, status, what, limit))


def _tell(done: "asyncio.Future[Exception | None]", flow: Flow, error: Exception | None) -> None:
    if not done.done():
        done.set_result(error)


def _timeout(code: str, status: int, what: str, limit: float) -> ExchangeError:
    fault = Fault.CALLER if status == 408 else Fault.UPSTREAM
    return ExchangeError(code, f"After {limit:g} s {what}.", status=status, fault=fault, hint="see [timeouts]")


def _broken(error: Exception, exchange: Exchange) -> Exception:
    code = error.code if isinstance(error, WireError) else "upstream_broke"
    if exchange.head_sent:
        return ResponseCut(Outcome.UPSTREAM_BROKE, code)
    upstream = exchange.upstream
    name = f"{upstream.name} ({upstream.where})" if upstream is not None else "?"
    return ExchangeError(code, f"The upstream {name} failed: {error}.", status=502, fault=Fault.UPSTREAM)

"""One upstream connection: what is read off it, when it may serve again, and how its end is told."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiedler_proxy.framing import ChunkedDecoder, LengthDecoder, NoBody, UntilClose
from fiedler_proxy.wire import (
    FIELD_CAP,
    HEAD_CAP,
    HEADERS_CAP,
    WRITE_BUFFER,
    ResponseHead,
    State,
    UpstreamConnection,
    WireError,
)


class Transport(asyncio.Transport):
    """Notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.done: list[str] = []
        self.unsent = 0

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.done.append("close")

    def abort(self) -> None:
        self.done.append("abort")

    def pause_reading(self) -> None:
        self.done.append("pause")

    def resume_reading(self) -> None:
        self.done.append("resume")

    def is_closing(self) -> bool:
        return "close" in self.done or "abort" in self.done

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.done.append(f"high={high}")

    @property
    def ended(self) -> bool:
        return self.is_closing()


@attrs.define(eq=False)
class Ear:
    """A sink that notes what it hears. ``joined``: body bytes that followed each other are one event."""

    events: list[tuple[object, ...]] = attrs.field(factory=list)
    heads: list[ResponseHead] = attrs.field(factory=list)
    errors: list[WireError] = attrs.field(factory=list)
    turns: int = 0

    def on_interim(self, head: ResponseHead) -> None:
        self.events.append(("interim", head.status))

    def on_head(self, head: ResponseHead) -> None:
        self.heads.append(head)
        self.events.append(("head", head.status))

    def on_body(self, data: bytes) -> None:
        assert data
        if self.events[-1][0] == "body":
            self.events[-1] = ("body", cast(bytes, self.events[-1][1]) + data)
        else:
            self.events.append(("body", data))

    def on_end(self) -> None:
        self.events.append(("end",))

    def on_broken(self, error: WireError) -> None:
        self.errors.append(error)
        self.events.append(("broken", error.code))

    def on_turn(self) -> None:
        self.turns += 1

    def on_writable(self) -> None:
        self.events.append(("writable",))


@attrs.define(eq=False)
class Bench:
    """A connection with everything around it played by the test; it is the connection's owner too."""

    connection: UpstreamConnection = attrs.field(init=False)
    transport: Transport = attrs.field(factory=Transport)
    ear: Ear = attrs.field(factory=Ear)
    told: list[str] = attrs.field(factory=list)

    @classmethod
    def made(cls, loop: asyncio.AbstractEventLoop) -> "Bench":
        bench = cls()
        bench.connection = UpstreamConnection(loop, bench)
        bench.connection.connection_made(bench.transport)
        return bench

    def freed(self, connection: UpstreamConnection) -> None:
        self.told.append("freed")

    def gone(self, connection: UpstreamConnection) -> None:
        self.told.append("gone")

    def ask(self, method: str = "GET", *, upgrade: bool = False, whole: bool = True) -> "Bench":
        self.ear = Ear()
        self.connection.begin(self.ear, method, upgrade)
        self.connection.write(b"a request")
        if whole:
            self.connection.finish_request()
        return self

    def hear(self, *pieces: bytes) -> list[tuple[object, ...]]:
        for piece in pieces:
            if self.connection.state is State.CLOSED:
                break
            self.connection.data_received(piece)
        return self.ear.events

    def lose(self, exc: Exception | None = None, *, eof: bool = True) -> list[tuple[object, ...]]:
        if eof and exc is None:
            self.connection.eof_received()
        self.connection.connection_lost(exc)
        return self.ear.events


@pytest.fixture
async def bench() -> Bench:
    return Bench.made(asyncio.get_running_loop())


OK = b"HTTP/1.1 200 OK\r\n"


class TestBodies:
    @pytest.mark.parametrize(
        ("method", "raw", "body", "kind"),
        [
            ("GET", OK + b"Content-Length: 5\r\n\r\nhello", b"hello", LengthDecoder),
            ("GET", OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"hello", ChunkedDecoder),
            (
                "GET",
                OK + b"transfer-encoding: CHUNKED\r\n\r\n5;x=y\r\nhello\r\n0\r\nT: 1\r\n\r\n",
                b"hello",
                ChunkedDecoder,
            ),
            ("GET", OK + b"Content-Length: 0\r\n\r\n", b"", NoBody),
            ("HEAD", OK + b"Content-Length: 5\r\n\r\n", b"", NoBody),
            ("HEAD", OK + b"Transfer-Encoding: chunked\r\n\r\n", b"", NoBody),
            ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", b"", NoBody),
            ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"", NoBody),
            ("POST", b"HTTP/1.1 529 \r\nContent-Length: 1\r\n\r\nx", b"x", LengthDecoder),
            ("POST", b"HTTP/1.1 429\r\nContent-Length: 1\r\n\r\nx", b"x", LengthDecoder),
        ],
    )
    async def test_a_whole_answer_frees_the_connection(
        self, bench: Bench, method: str, raw: bytes, body: bytes, kind: type
    ) -> None:
        events = bench.ask(method).hear(raw)
        status = int(raw[9:12])
        assert events == [("head", status), *([("body", body)] if body else []), ("end",)]
        assert isinstance(bench.ear.heads[0].decoder, kind)
        assert bench.connection.state is State.IDLE
        assert bench.told == ["freed"]
        assert not bench.transport.ended
        assert bench.ear.turns == 1

    async def test_one_connection_serves_many_exchanges(self, bench: Bench) -> None:
        for number in range(3):
            body = b"%d" % number
            events = bench.ask().hear(OK + b"Content-Length: 1\r\n\r\n" + body)
            assert events == [("head", 200), ("body", body), ("end",)]
        assert bench.connection.exchanges == 3
        assert bench.told == ["freed"] * 3

    async def test_head_and_answers_of_every_kind_alternate(self, bench: Bench) -> None:
        assert bench.ask("HEAD").hear(OK + b"Content-Length: 5\r\n\r\n")[-1] == ("end",)
        assert bench.ask().hear(OK + b"Content-Length: 2\r\n\r\nab")[-2:] == [("body", b"ab"), ("end",)]
        assert bench.ask().hear(b"HTTP/1.1 304 x\r\n\r\n")[-1] == ("end",)
        assert bench.ask().hear(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\ncd\r\n0\r\n\r\n")[-2] == ("body", b"cd")
        assert bench.told == ["freed"] * 4

    async def test_a_body_until_close_ends_with_the_connection(self, bench: Bench) -> None:
        events = bench.ask().hear(OK + b"\r\nhel", b"lo")
        assert events == [("head", 200), ("body", b"hello")]
        assert isinstance(bench.ear.heads[0].decoder, UntilClose)
        assert bench.lose() == [("head", 200), ("body", b"hello"), ("end",)]
        assert bench.told == ["gone"]

    async def test_raw_headers_keep_order_case_and_bytes(self, bench: Bench) -> None:
        bench.ask().hear(
            OK + b"X-B: caf\xe9\r\nset-cookie: a\r\nSET-COOKIE: b\r\nX-Empty:\r\nContent-Length: 0\r\n\r\n"
        )
        assert bench.ear.heads[0].headers == (
            (b"X-B", b"caf\xe9"),
            (b"set-cookie", b"a"),
            (b"SET-COOKIE", b"b"),
            (b"X-Empty", b""),
            (b"Content-Length", b"0"),
        )

    @pytest.mark.parametrize("reason", [b"", b"OK", b"caf\xe9 \xff!", b"Very  Odd"])
    async def test_the_reason_is_raw(self, bench: Bench, reason: bytes) -> None:
        bench.ask().hear(b"HTTP/1.1 200 " + reason + b"\r\nContent-Length: 0\r\n\r\n")
        assert bench.ear.heads[0].reason.encode("utf-8", "surrogateescape") == reason

    async def test_a_coded_body_is_not_decoded(self, bench: Bench) -> None:
        raw = OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\0\0"
        assert bench.ask().hear(raw)[1] == ("body", b"\x1f\x8b\0\0")

    async def test_a_wide_head_is_read(self, bench: Bench) -> None:
        value = b"x" * (FIELD_CAP - 100)
        raw = OK + b"X-Wide: " + value + b"\r\nContent-Length: 0\r\n\r\n"
        assert bench.ask().hear(raw[:70000], raw[70000:])[-1] == ("end",)
        assert bench.ear.heads[0].headers[0] == (b"X-Wide", value)

    async def test_a_head_with_bare_line_feeds_ends_where_its_body_begins(self, bench: Bench) -> None:
        for empty in (b"\n", b"\r\n"):
            events = bench.ask().hear(b"HTTP/1.1 200 OK\nContent-Length: 12\n" + empty + b"ab\r\n\r\nefghij")
            assert events == [("head", 200), ("body", b"ab\r\n\r\nefghij"), ("end",)]

    async def test_an_answer_to_head_that_names_no_length_keeps_the_connection(self, bench: Bench) -> None:
        assert bench.ask("HEAD").hear(OK + b"\r\n") == [("head", 200), ("end",)]
        assert bench.ask("HEAD").hear(OK + b"Connection: close\r\n\r\n") == [("head", 200), ("end",)]
        assert bench.told == ["freed"]
        assert bench.transport.ended


class TestInterim:
    async def test_interim_answers_are_no_answers(self, bench: Bench) -> None:
        raw = (
            b"HTTP/1.1 100 Continue\r\n\r\n"
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
            b"HTTP/1.1 102 Processing\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\nx"
        )
        expected = [("interim", 100), ("interim", 103), ("interim", 102), ("head", 200), ("body", b"x"), ("end",)]
        assert bench.ask().hear(raw) == expected
        assert bench.ask().hear(*(raw[i : i + 1] for i in range(len(raw)))) == expected
        assert bench.told == ["freed"] * 2


class TestReuse:
    """A connection is lent again only when nothing about it is doubtful."""

    @pytest.mark.parametrize(
        "raw",
        [
            OK + b"Content-Length: 1\r\nConnection: close\r\n\r\nx",
            b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx",
            OK + b"Content-Length: 1\r\n\r\nxy",
            OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n\n",
            b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ],
    )
    async def test_a_doubtful_end_closes_it_and_the_answer_is_whole(self, bench: Bench, raw: bytes) -> None:
        assert bench.ask().hear(raw)[-1] == ("end",)
        assert bench.connection.state is State.CLOSED
        assert bench.transport.ended
        assert bench.told == []

    async def test_an_http_1_0_upstream_may_keep_alive(self, bench: Bench) -> None:
        bench.ask().hear(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx")
        assert bench.told == ["freed"]

    async def test_an_answer_before_the_request_was_sent_closes_it(self, bench: Bench) -> None:
        assert bench.ask(whole=False).hear(OK + b"Content-Length: 1\r\n\r\nx")[-1] == ("end",)
        assert bench.transport.ended
        assert bench.told == []

    async def test_an_answer_before_the_request_has_left_us_closes_it(self, bench: Bench) -> None:
        bench.ask()
        bench.transport.unsent = 1
        assert bench.hear(OK + b"Content-Length: 1\r\n\r\nx")[-1] == ("end",)
        assert bench.transport.ended
        assert bench.told == []

    async def test_trap_one_unasked_byte_on_an_idle_connection_closes_it(self, bench: Bench) -> None:
        bench.ask().hear(OK + b"Content-Length: 0\r\n\r\n")
        ear, bench.ear = bench.ear, Ear()
        bench.connection.data_received(b"H")
        assert bench.connection.state is State.CLOSED
        assert bench.transport.ended
        assert ear.events[-1] == ("end",)

    async def test_reading_goes_on_for_the_next_exchange(self, bench: Bench) -> None:
        bench.ask().hear(OK + b"Content-Length: 2\r\n\r\na")
        bench.connection.pause()
        assert bench.connection.reading_paused
        bench.hear(b"b")
        assert bench.transport.done[-1] == "resume"
        assert not bench.connection.reading_paused
        assert bench.told == ["freed"]


class TestCleanliness:
    """What the kernel knows already counts, although the loop has not heard it."""

    @pytest.fixture
    async def pair(self) -> AsyncIterator[tuple[UpstreamConnection, socket.socket]]:
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        near.setblocking(False)
        bench = Bench()
        connection = UpstreamConnection(loop, bench)
        await loop.create_connection(lambda: connection, sock=near)
        yield connection, far
        connection.abort()
        far.close()
        await asyncio.sleep(0)

    async def test_a_silent_open_connection_is_clean(self, pair: tuple[UpstreamConnection, socket.socket]) -> None:
        assert pair[0].is_clean()

    async def test_trap_stray_bytes_that_the_loop_has_not_read_make_it_unclean(
        self, pair: tuple[UpstreamConnection, socket.socket]
    ) -> None:
        connection, far = pair
        far.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        assert not connection.is_clean()

    async def test_a_close_that_the_loop_has_not_seen_makes_it_unclean(
        self, pair: tuple[UpstreamConnection, socket.socket]
    ) -> None:
        connection, far = pair
        far.close()
        assert not connection.is_clean()

    async def test_a_connection_in_use_or_closed_is_not_clean(
        self, pair: tuple[UpstreamConnection, socket.socket]
    ) -> None:
        connection, _ = pair
        connection.begin(Ear(), "GET", False)
        assert not connection.is_clean()
        connection.abort()
        assert not connection.is_clean()


GARBAGE = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.0\r\n",
    "no HTTP with an empty line": b"hello\r\n\r\n",
    "TLS alert": b"\x15\x03\x01\x00\x02\x02\x16",
    "version 0.9": b"HTTP/0.9 200 OK\r\n\r\n",
    "version 2": b"HTTP/2.0 200 OK\r\n\r\n",
    "version 1.2": b"HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n",
    "ICY": b"ICY 200 OK\r\n\r\n",
    "status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "status below 100": b"HTTP/1.1 099 No\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "leading empty line": b"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "header without colon": OK + b"nonsense\r\n\r\n",
    "space before colon": OK + b"Content-Length : 5\r\n\r\nhello",
    "tab before colon": OK + b"Content-Length\t: 5\r\n\r\nhello",
    "space before colon of a coding": OK + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "space before colon of any header": OK + b"X-A : 5\r\n\r\n",
    "spaced and plain length": OK + b"Content-Length : 5\r\nContent-Length: 6\r\n\r\nhello",
    "empty coding": OK + b"Transfer-Encoding:\r\n\r\nhello",
    "coding behind a vertical tab": OK + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "NUL in header": OK + b"X: a\0b\r\n\r\n",
    "bare CR in header": OK + b"X: a\rContent-Length: 0\r\n\r\n",
    "lengths that differ": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "length with a sign": OK + b"Content-Length: +5\r\n\r\nhello",
    "length below zero": OK + b"Content-Length: -5\r\n\r\nhello",
    "length as a list": OK + b"Content-Length: 5, 5\r\n\r\nhello",
    "length of letters": OK + b"Content-Length: five\r\n\r\nhello",
    "length without end": OK + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
    "empty length": OK + b"Content-Length: \r\n\r\n",
    "length and chunked": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": OK + b"Transfer-Encoding: gzip\r\n\r\nx",
    "coding before chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "coding behind chunked": OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked twice": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "endless head": OK + b"X: a\r\n" * (HEAD_CAP // 6 + 1),
    "too many headers": OK + b"X: a\r\n" * (HEADERS_CAP + 1) + b"\r\n",
    "too long a header": OK + b"X: " + b"a" * (FIELD_CAP + 1) + b"\r\n\r\n",
}


class TestGarbage:
    @pytest.mark.parametrize("name", GARBAGE)
    async def test_garbage_before_the_head_is_no_answer(self, bench: Bench, name: str) -> None:
        assert bench.ask().hear(GARBAGE[name]) == [("broken", "upstream_garbage")]
        assert bench.transport.ended
        assert bench.told == []

    @pytest.mark.parametrize("name", [name for name in GARBAGE if len(GARBAGE[name]) < 1000])
    async def test_garbage_in_single_bytes(self, bench: Bench, name: str) -> None:
        raw = GARBAGE[name]
        assert bench.ask().hear(*(raw[i : i + 1] for i in range(len(raw)))) == [("broken", "upstream_garbage")]

    async def test_the_error_says_what_is_wrong_and_quotes_no_bytes(self) -> None:
        for raw, why in (
            (OK + b"s3cret s3cret: s3cret\r\n\r\n", "Invalid header token"),
            (OK + b"X: " + b"s3cret" * FIELD_CAP + b"\r\n\r\n", "a line of the answer's head is too long"),
            (OK + b"s3cret\xff: 1\r\n\r\n", "Invalid header token"),
        ):
            bench = Bench.made(asyncio.get_running_loop())
            bench.ask().hear(raw)
            (error,) = bench.ear.errors
            assert str(error) == why

    async def test_trap_an_unasked_101_is_an_error(self, bench: Bench) -> None:
        events = bench.ask().hear(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
        )
        assert events == [("broken", "upstream_unasked_upgrade")]


class TestBrokenBodies:
    async def test_trap_a_bad_chunk_is_told_at_once_and_what_came_before_it_is_delivered(self, bench: Bench) -> None:
        events = bench.ask().hear(OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n")
        assert events == [("head", 200), ("body", b"abc"), ("broken", "upstream_broke")]
        assert bench.transport.ended

    @pytest.mark.parametrize("framing", [b"Content-Length: 9", b"Transfer-Encoding: chunked"])
    @pytest.mark.parametrize("exc", [None, ConnectionResetError()])
    async def test_an_early_end_is_broken(self, bench: Bench, framing: bytes, exc: Exception | None) -> None:
        bench.ask().hear(OK + framing + b"\r\n\r\n", b"5\r\nabc")
        assert bench.lose(exc)[-1] == ("broken", "upstream_broke")
        assert bench.told == ["gone"]

    async def test_trap_a_reset_is_no_end_of_a_body_until_close(self, bench: Bench) -> None:
        bench.ask().hear(OK + b"\r\nabc")
        assert bench.lose(ConnectionResetError())[-1] == ("broken", "upstream_broke")

    async def test_a_loss_without_end_of_stream_is_no_end_of_a_body_until_close(self, bench: Bench) -> None:
        """With TLS: the connection ended without close_notify (RFC 8446 section 6.1)."""
        bench.ask().hear(OK + b"\r\nabc")
        assert bench.lose(None, eof=False)[-1] == ("broken", "upstream_broke")

    @pytest.mark.parametrize(
        ("exc", "code"),
        [(None, "upstream_closed"), (ConnectionResetError(), "upstream_reset"), (OSError(), "upstream_reset")],
    )
    @pytest.mark.parametrize("heard", [b"", b"HTTP/1.1 200", OK + b"X: 1\r\n"])
    async def test_no_head_at_all(self, bench: Bench, exc: Exception | None, code: str, heard: bytes) -> None:
        bench.ask()
        if heard:
            bench.hear(heard)
        assert bench.lose(exc) == [("broken", code)]

    async def test_nobody_is_told_twice(self, bench: Bench) -> None:
        bench.ask().hear(b"garbage!")
        assert bench.lose() == [("broken", "upstream_garbage")]
        assert bench.told == ["gone"]


class TestTunnel:
    SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"

    async def test_bytes_that_come_with_the_101_are_tunnelled(self, bench: Bench) -> None:
        events = bench.ask(upgrade=True).hear(self.SWITCH + b"\x81\x02hi", b"\r\n\r\nHTTP/1.1 200")
        assert events == [("head", 101), ("body", b"\x81\x02hi\r\n\r\nHTTP/1.1 200")]
        assert bench.connection.state is State.TUNNEL

    async def test_it_ends_with_a_close_and_breaks_with_a_reset(self, bench: Bench) -> None:
        bench.ask(upgrade=True).hear(self.SWITCH)
        assert bench.lose()[-1] == ("end",)
        other = Bench.made(asyncio.get_running_loop())
        other.ask(upgrade=True).hear(self.SWITCH)
        assert other.lose(ConnectionResetError())[-1] == ("broken", "upstream_broke")

    async def test_a_refused_upgrade_is_an_answer_like_any_other(self, bench: Bench) -> None:
        events = bench.ask(upgrade=True).hear(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
        assert events == [("head", 404), ("body", b"no"), ("end",)]
        assert bench.told == ["freed"]

    async def test_a_refusal_that_names_an_upgrade_is_an_answer_too(self, bench: Bench) -> None:
        raw = (
            b"HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nno"
        )
        assert bench.ask().hear(raw) == [("head", 426), ("body", b"no"), ("end",)]
        assert bench.ask().hear(OK + b"Content-Length: 1\r\n\r\nx")[-1] == ("end",)


class TestLetGo:
    async def test_an_aborted_exchange_hears_nothing_more(self, bench: Bench) -> None:
        bench.ask().hear(OK + b"Content-Length: 9\r\n\r\nabc")
        bench.connection.abort()
        assert bench.transport.done[-1] == "abort"
        bench.connection.data_received(b"def")
        bench.lose(ConnectionResetError())
        assert bench.ear.events == [("head", 200), ("body", b"abc")]
        assert bench.told == ["gone"]

    async def test_a_closed_connection_takes_no_bytes(self, bench: Bench) -> None:
        bench.ask()
        bench.connection.close()
        bench.connection.write(b"more")
        assert bench.transport.written == b"a request"
        assert bench.transport.done[-1] == "close"

    async def test_pausing_and_resuming_are_asked_once(self, bench: Bench) -> None:
        bench.ask()
        for call in ("pause", "pause", "resume", "resume"):
            getattr(bench.connection, call)()
        assert bench.transport.done == [f"high={WRITE_BUFFER}", "pause", "resume"]

    async def test_room_to_write_is_told_to_who_uses_the_connection(self, bench: Bench) -> None:
        bench.ask(whole=False)
        bench.connection.pause_writing()
        assert bench.connection.writing_paused
        bench.connection.resume_writing()
        assert not bench.connection.writing_paused
        assert bench.ear.events == [("writable",)]


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[str, bytes, list[tuple[object, ...]]]:
    """A method, the bytes of its answer, and what a sink must hear of them."""
    interim = draw(st.lists(st.sampled_from([100, 102, 103]), max_size=2))
    body = draw(st.binary(max_size=40))
    status = draw(st.sampled_from([200, 404, 529]))
    raw = b"".join(b"HTTP/1.1 %d x\r\nA: b\r\n\r\n" % number for number in interim)
    raw += b"HTTP/1.1 %d r\r\nX: \xff\r\n" % status
    if draw(st.booleans()):
        raw += b"Content-Length: %d\r\n\r\n" % len(body) + body
    else:
        raw += b"Transfer-Encoding: chunked\r\n\r\n"
        raw += b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    heard: list[tuple[object, ...]] = [("interim", number) for number in interim]
    return "GET", raw, [*heard, ("head", status), *([("body", body)] if body else []), ("end",)]


def pieces(data: st.DataObject, raw: bytes) -> Sequence[bytes]:
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(raw) - 1)), max_size=10)))
    return [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True) if a < b]


@settings(max_examples=150)
@given(st.data(), st.lists(exchanges(), min_size=1, max_size=3))
def test_any_split_of_any_answers_is_heard_alike(
    data: st.DataObject, series: list[tuple[str, bytes, list[tuple[object, ...]]]]
) -> None:
    loop = asyncio.new_event_loop()
    try:
        bench = Bench.made(loop)
        for method, raw, expected in series:
            assert bench.ask(method).hear(*pieces(data, raw)) == expected
        assert bench.told == ["freed"] * len(series)
    finally:
        loop.close()

"""The exchange: it closes once, and no observer can slow, alter or break it."""

import itertools
import logging
import time
from collections.abc import Callable

import attrs
import pytest

from fiedler_proxy.exchange import (
    OBSERVER_SLOW_SECONDS,
    OBSERVER_STRIKES,
    Direction,
    Exchange,
    Observer,
    Outcome,
)


@attrs.define
class Notebook(Observer):
    """Writes down what it hears. Not hashable, as attrs classes with equality are."""

    heard: list[tuple[object, ...]] = attrs.field(factory=list)

    def request_head(self, exchange: Exchange) -> None:
        self.heard.append(("request_head", exchange.target))

    def request_bytes(self, exchange: Exchange, data: bytes) -> None:
        self.heard.append(("request_bytes", data, exchange.request_size))

    def response_head(self, exchange: Exchange) -> None:
        self.heard.append(("response_head", exchange.status, exchange.response_headers))

    def response_bytes(self, exchange: Exchange, data: bytes) -> None:
        self.heard.append(("response_bytes", data, exchange.response_size))

    def tunnel_bytes(self, exchange: Exchange, direction: Direction, data: bytes) -> None:
        self.heard.append(("tunnel_bytes", direction, data))

    def closed(self, exchange: Exchange) -> None:
        self.heard.append(("closed", exchange.outcome))


class Failing(Observer):
    """Raises in the method it is told to; ``calls`` counts how often."""

    def __init__(self, error: Exception) -> None:
        self.calls = 0
        self.error = error


def failing(where: str, error: Exception) -> Failing:
    def fail(self: Failing, *args: object) -> None:
        self.calls += 1
        raise self.error

    kind: type[Failing] = type("FailingOnce", (Failing,), {where: fail})
    return kind(error)


def tell_everything(exchange: Exchange) -> None:
    exchange.tell_request_head()
    exchange.tell_request_bytes(b"ask")
    exchange.status, exchange.reason, exchange.response_headers = 200, "OK", ((b"A", b"1"),)
    exchange.tell_response_head()
    exchange.tell_response_bytes(b"answer")
    exchange.tell_tunnel_bytes(Direction.TO_UPSTREAM, b"up")
    exchange.close(Outcome.COMPLETED)


EVERYTHING: list[tuple[object, ...]] = [
    ("request_head", "/x?y"),
    ("request_bytes", b"ask", 3),
    ("response_head", 200, ((b"A", b"1"),)),
    ("response_bytes", b"answer", 6),
    ("tunnel_bytes", Direction.TO_UPSTREAM, b"up"),
    ("closed", Outcome.COMPLETED),
]


@pytest.fixture
def exchange() -> Exchange:
    return Exchange("POST", "/x?y", id="id-1")


class TestObservers:
    def test_an_observer_hears_everything_in_order(self, exchange: Exchange) -> None:
        notebook = Notebook()
        exchange.observe(notebook)
        tell_everything(exchange)
        assert notebook.heard == EVERYTHING

    def test_an_observer_that_overrides_nothing_is_welcome(self, exchange: Exchange) -> None:
        exchange.observe(Observer())
        tell_everything(exchange)
        assert exchange.outcome is Outcome.COMPLETED

    def test_what_comes_with_the_head_is_heard_as_head_and_bytes(self, exchange: Exchange) -> None:
        @attrs.define
        class Bytes(Observer):
            heard: list[bytes] = attrs.field(factory=list)

            def response_bytes(self, exchange: Exchange, data: bytes) -> None:
                self.heard.append(data)

        notebook, only, deaf = Notebook(), Bytes(), Observer()
        for observer in (notebook, only, deaf):
            exchange.observe(observer)
        exchange.status = 200
        exchange.tell_response_start(b"a")
        exchange.tell_response_bytes(b"b")
        assert [heard[0] for heard in notebook.heard] == ["response_head", "response_bytes", "response_bytes"]
        assert only.heard == [b"a", b"b"]
        assert exchange.response_size == 2
        assert exchange.first_byte is not None

    def test_observers_hear_in_the_order_of_attachment(self, exchange: Exchange) -> None:
        order: list[str] = []

        class Named(Observer):
            def __init__(self, name: str) -> None:
                self.name = name

            def response_bytes(self, exchange: Exchange, data: bytes) -> None:
                order.append(self.name)

        for name in "abc":
            exchange.observe(Named(name))
        exchange.tell_response_bytes(b"x")
        assert order == ["a", "b", "c"]

    def test_a_late_observer_hears_what_happens_from_then_on(self, exchange: Exchange) -> None:
        exchange.tell_request_head()
        notebook = Notebook()
        exchange.observe(notebook)
        exchange.tell_response_bytes(b"x")
        assert [heard[0] for heard in notebook.heard] == ["response_bytes"]

    @pytest.mark.parametrize("where", [str(heard[0]) for heard in EVERYTHING])
    def test_one_that_raises_is_detached_and_reported_and_the_others_go_on(
        self, exchange: Exchange, where: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        bad, before, after = failing(where, RuntimeError("s3cret from the body")), Notebook(), Notebook()
        for observer in (before, bad, after):
            exchange.observe(observer)
        tell_everything(exchange)
        tell_everything(exchange)
        assert bad.calls == 1
        assert before.heard[:6] == after.heard[:6] == EVERYTHING
        assert exchange.facts["detached"] == [f"FailingOnce: RuntimeError in {where}"]
        assert exchange.outcome is Outcome.COMPLETED
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert "observer FailingOnce of exchange id-1 detached" in record.getMessage()
        assert "test_exchange.py" in record.getMessage()

    def test_what_an_observers_exception_says_is_not_logged(
        self, exchange: Exchange, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It may quote what passed."""
        exchange.observe(failing("response_bytes", ValueError("s3cret")))
        exchange.tell_response_bytes(b"s3cret")
        assert caplog.records
        assert "s3cret" not in caplog.text

    def test_a_report_never_breaks_the_exchange(self, exchange: Exchange) -> None:
        exchange.facts["detached"] = "an author's own word"
        exchange.observe(failing("request_head", RuntimeError()))
        exchange.tell_request_head()
        assert exchange.facts["detached"] == "an author's own word"

    def test_an_observer_may_attach_another(self, exchange: Exchange) -> None:
        notebook = Notebook()

        class Inviting(Observer):
            def request_head(self, exchange: Exchange) -> None:
                exchange.observe(notebook)

        exchange.observe(Inviting())
        tell_everything(exchange)
        assert notebook.heard[-5:] == EVERYTHING[1:]


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TestSlowObservers:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        clock = Clock()
        monkeypatch.setattr("fiedler_proxy.exchange.perf_counter", clock)
        return clock

    @staticmethod
    def slow(clock: Clock, seconds: float) -> Notebook:
        @attrs.define
        class Slow(Notebook):
            def response_bytes(self, exchange: Exchange, data: bytes) -> None:
                self.heard.append(("response_bytes", data))
                clock.now += seconds

        return Slow()

    def test_three_strikes_detach_it(self, exchange: Exchange, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
        slow, quick = self.slow(clock, OBSERVER_SLOW_SECONDS * 1.01), Notebook()
        exchange.observe(slow)
        exchange.observe(quick)
        for _ in range(OBSERVER_STRIKES + 2):
            exchange.tell_response_bytes(b"x")
        assert len(slow.heard) == OBSERVER_STRIKES
        assert len(quick.heard) == OBSERVER_STRIKES + 2
        assert exchange.facts["detached"] == ["Slow: slow in response_bytes"]
        assert "slow in response_bytes" in caplog.text

    def test_a_pause_of_the_process_is_no_reason(self, exchange: Exchange, clock: Clock) -> None:
        slow = self.slow(clock, OBSERVER_SLOW_SECONDS * 1.01)
        exchange.observe(slow)
        for _ in range(OBSERVER_STRIKES - 1):
            exchange.tell_response_bytes(b"x")
        assert "detached" not in exchange.facts

    def test_a_quick_one_stays(self, exchange: Exchange, clock: Clock) -> None:
        quick = self.slow(clock, OBSERVER_SLOW_SECONDS * 0.99)
        exchange.observe(quick)
        for _ in range(50):
            exchange.tell_response_bytes(b"x")
        assert len(quick.heard) == 50

    def test_strikes_are_counted_for_each_observer(self, exchange: Exchange, clock: Clock) -> None:
        """Two equal observers are still two."""
        first, second = (self.slow(clock, OBSERVER_SLOW_SECONDS * 2) for _ in range(2))
        exchange.observe(first)
        exchange.tell_response_bytes(b"x")
        exchange.observe(second)
        first.heard.clear()
        for _ in range(OBSERVER_STRIKES):
            exchange.tell_response_bytes(b"x")
        assert len(first.heard) == OBSERVER_STRIKES - 1
        assert len(second.heard) == OBSERVER_STRIKES


class TestClosing:
    def test_the_first_end_decides(self, exchange: Exchange) -> None:
        notebook = Notebook()
        exchange.observe(notebook)
        assert not exchange.closed
        exchange.close(Outcome.UPSTREAM_BROKE)
        ended = exchange.ended
        exchange.close(Outcome.COMPLETED)
        assert exchange.outcome is Outcome.UPSTREAM_BROKE
        assert exchange.closed
        assert exchange.ended == ended
        assert notebook.heard == [("closed", Outcome.UPSTREAM_BROKE)]

    def test_nothing_is_heard_after_the_end(self, exchange: Exchange) -> None:
        notebook = Notebook()
        exchange.observe(notebook)
        exchange.close(Outcome.CALLER_LEFT)
        exchange.tell_response_bytes(b"late")
        assert notebook.heard == [("closed", Outcome.CALLER_LEFT)]

    def test_closing_from_within_closed_ends_once(self, exchange: Exchange) -> None:
        class Insisting(Observer):
            calls = 0

            def closed(self, exchange: Exchange) -> None:
                self.calls += 1
                exchange.close(Outcome.GATEWAY_FAULT)

        insisting = Insisting()
        exchange.observe(insisting)
        exchange.close(Outcome.COMPLETED)
        assert insisting.calls == 1
        assert exchange.outcome is Outcome.COMPLETED

    def test_outcomes_are_the_words_of_the_record(self) -> None:
        assert [str(outcome) for outcome in Outcome] == [
            "completed", "refused", "caller_left", "upstream_broke", "timed_out", "gateway_stopped", "gateway_fault",
        ]  # fmt: skip


class TestAborting:
    def test_it_is_handed_to_whoever_runs_the_exchange(self, exchange: Exchange) -> None:
        asked: list[Outcome] = []
        exchange.on_abort(asked.append)
        exchange.abort(Outcome.GATEWAY_STOPPED)
        assert asked == [Outcome.GATEWAY_STOPPED]

    def test_nothing_happens_where_nobody_listens_or_all_is_over(self, exchange: Exchange) -> None:
        asked: list[Outcome] = []
        exchange.abort(Outcome.GATEWAY_STOPPED)
        exchange.on_abort(asked.append)
        exchange.on_abort(None)
        exchange.abort(Outcome.GATEWAY_STOPPED)
        exchange.on_abort(asked.append)
        exchange.close(Outcome.COMPLETED)
        exchange.abort(Outcome.GATEWAY_STOPPED)
        assert asked == []


class TestFacts:
    def test_sizes_count_both_ways(self, exchange: Exchange) -> None:
        exchange.tell_request_bytes(b"ab")
        exchange.tell_response_bytes(b"abc")
        exchange.tell_tunnel_bytes(Direction.TO_UPSTREAM, b"abcd")
        exchange.tell_tunnel_bytes(Direction.TO_CALLER, b"abcde")
        assert (exchange.request_size, exchange.response_size) == (6, 8)

    def test_the_clocks_run_forward(self, exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
        ticks = itertools.count(time.monotonic() + 1)
        monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
        assert exchange.first_byte is None
        exchange.tell_response_bytes(b"a")
        first = exchange.first_byte
        exchange.tell_response_bytes(b"b")
        exchange.close(Outcome.COMPLETED)
        assert first is not None
        assert exchange.first_byte == first
        assert exchange.ended is not None
        assert exchange.started < first < exchange.ended

    def test_two_exchanges_are_never_equal(self) -> None:
        assert len({Exchange("GET", "/"), Exchange("GET", "/")}) == 2


class TestRequestHeaders:
    HEADERS = ((b"X-Key", b"1"), (b"x-key", b"2"), (b"Accept", b"a"))

    def test_the_first_of_its_name_is_found(self) -> None:
        exchange = Exchange("GET", "/", request_headers=self.HEADERS)
        assert exchange.find(b"x-key") == b"1"
        assert exchange.find(b"missing") is None

    def test_unwanted_ones_go_and_are_counted(self) -> None:
        exchange = Exchange("GET", "/", request_headers=self.HEADERS)
        assert exchange.remove_request_headers(lambda name, value: value == b"2") == 1
        assert exchange.request_headers == ((b"X-Key", b"1"), (b"Accept", b"a"))
        assert exchange.remove_request_headers(lambda name, value: False) == 0


class TestResponseHeaders:
    def test_a_header_is_added_once_whatever_its_case(self, exchange: Exchange) -> None:
        exchange.add_response_header("X-A", "1")
        exchange.add_response_header("x-b", "2")
        exchange.add_response_header("x-a", "3")
        assert exchange.added_headers == {"x-b": "2", "x-a": "3"}

    @pytest.mark.parametrize(
        ("name", "value"),
        [("", "v"), ("X A", "v"), ("X:A", "v"), ("X\r\nB", "v"), ("caf\xe9", "v"), ("X\0", "v"), ("(x)", "v"),
         ("X", "a\r\nB: 1"), ("X", "a\nb"), ("X", "a\0"), ("X", "\ud800")],
    )  # fmt: skip
    def test_what_no_header_may_be_is_refused(self, exchange: Exchange, name: str, value: str) -> None:
        with pytest.raises(ValueError, match="not a header"):
            exchange.add_response_header(name, value)
        assert exchange.added_headers == {}

    @pytest.mark.parametrize(
        "name",
        ["Content-Length", "transfer-encoding", "Connection", "Upgrade", "Trailer"],
    )
    def test_framing_is_not_a_links_to_change(self, exchange: Exchange, name: str) -> None:
        with pytest.raises(ValueError, match="belongs to the connection"):
            exchange.add_response_header(name, "1")

    def test_it_is_too_late_once_the_head_has_left(self, exchange: Exchange) -> None:
        exchange.head_sent = True
        with pytest.raises(RuntimeError, match="after the head had left"):
            exchange.add_response_header("X-A", "1")


class Upper:
    def feed(self, data: bytes) -> bytes:
        return data.upper()

    def end(self) -> bytes:
        return b""


class TestTransforms:
    """Changing bytes is a declared power."""

    @pytest.mark.parametrize(
        "change",
        [
            lambda exchange: exchange.replace_request_body(b""),
            lambda exchange: exchange.transform_response(Upper()),
        ],
    )
    def test_without_the_declaration_it_is_refused(
        self, exchange: Exchange, change: Callable[[Exchange], None]
    ) -> None:
        with pytest.raises(RuntimeError, match="transforms = True"):
            change(exchange)
        assert not exchange.transformed
        exchange.may_transform = True
        change(exchange)
        assert exchange.transformed

    def test_an_unchanged_exchange_is_not_marked(self, exchange: Exchange) -> None:
        exchange.may_transform = exchange.head_sent = True
        with pytest.raises(RuntimeError, match="head has left"):
            exchange.transform_response(Upper())
        assert not exchange.transformed


class TestRequestStart:
    """The head and a whole body in one: for those who take both together, and for those who do not."""

    def test_an_observer_of_both_hears_both(self) -> None:
        class Both(Observer):
            def __init__(self) -> None:
                self.heard: list[object] = []

            def request_head(self, exchange: Exchange) -> None:
                self.heard.append("head")

            def request_bytes(self, exchange: Exchange, data: bytes) -> None:
                self.heard.append(data)

        exchange, observer = Exchange("POST", "/"), Both()
        exchange.observe(observer)
        exchange.tell_request_start(b"ab")
        assert observer.heard == ["head", b"ab"]
        assert exchange.request_size == 2

    def test_one_that_takes_both_together_hears_them_once(self) -> None:
        class Together(Observer):
            def __init__(self) -> None:
                self.heard: list[object] = []

            def request_start(self, exchange: Exchange, data: bytes) -> None:
                self.heard.append(data)

        exchange, observer = Exchange("POST", "/"), Together()
        exchange.observe(observer)
        exchange.tell_request_start(b"ab")
        assert observer.heard == [b"ab"]

    def test_one_that_fails_is_detached(self) -> None:
        class Fails(Observer):
            def request_start(self, exchange: Exchange, data: bytes) -> None:
                raise ValueError

        exchange = Exchange("POST", "/")
        exchange.observe(Fails())
        exchange.tell_request_start(b"ab")
        assert exchange.facts["detached"] == ["Fails: ValueError in request_start"]

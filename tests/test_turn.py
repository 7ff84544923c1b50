"""The end of a turn: everything once, in its order, and nobody's failure is another's."""

import asyncio

import pytest

from fiedler_proxy.turn import Turn


async def turns(number: int = 2) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


class TestTurn:
    async def test_begin_write_end_is_the_order_whatever_came_first(self) -> None:
        turn, made = Turn(asyncio.get_running_loop()), list[str]()
        turn.end(lambda: made.append("end"))
        turn.write(lambda: made.append("write"))
        turn.begin(lambda: made.append("begin"))
        turn.begin(lambda: made.append("begin too"))
        assert made == []
        await turns()
        assert made == ["begin", "begin too", "write", "end"]
        await turns()
        assert len(made) == 4

    async def test_what_a_call_adds_for_later_in_the_order_is_made_in_the_same_turn(self) -> None:
        turn, made = Turn(asyncio.get_running_loop()), list[str]()

        def begin() -> None:
            turn.write(lambda: made.append("write"))
            turn.end(lambda: made.append("end"))

        turn.begin(begin)
        await turns(1)
        assert made == ["write", "end"]

    async def test_a_call_that_fails_fails_alone_and_says_where(self, caplog: pytest.LogCaptureFixture) -> None:
        turn, made = Turn(asyncio.get_running_loop()), list[str]()

        def fails() -> None:
            secret = "sk-" + "not-for-the-log"  # where it was made is shown, what it says is not
            raise ValueError(secret)

        turn.write(fails)
        turn.write(lambda: made.append("write"))
        await turns()
        assert made == ["write"]
        assert "ValueError" in caplog.text
        assert "fails" in caplog.text
        assert "sk-not-for-the-log" not in caplog.text

    async def test_observers_hear_before_anything_is_written_and_of_ends_last(self) -> None:
        turn, made = Turn(asyncio.get_running_loop()), list[str]()

        def end() -> None:
            turn.close(lambda: made.append("close"))
            made.append("end")

        turn.end(end)
        turn.write(lambda: made.append("write"), lambda: made.append("tell"))
        turn.write(lambda: made.append("write"), lambda: made.append("tell"))
        await turns(1)
        assert made == ["tell", "tell", "write", "write", "end", "close"]
        turn.close(lambda: made.append("alone"))
        await turns(1)
        assert made[-1] == "alone"

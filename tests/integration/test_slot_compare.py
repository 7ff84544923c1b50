"""A shadow from end to end: copies go through the whole chain, are recorded apart from the sessions they repeat, and are compared."""

import asyncio
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from fiedler_proxy.testing import RawClient, ScriptedUpstream, respond
from kgb_gateway.__main__ import main
from tests.controlled import controlled
from tests.recorded import JSON, Recorded

ASKED = {"model": "claude-x", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}


def answer(text: str, stop: str, out: int) -> bytes:
    usage = {"input_tokens": 7, "output_tokens": out}
    content = [{"type": "text", "text": text}]
    said = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": content}
    return json.dumps({**said, "stop_reason": stop, "stop_sequence": None, "usage": usage}).encode()


async def test_copies_are_compared_and_are_no_part_of_the_session(tmp_path: Path) -> None:
    active = respond(200, [JSON], answer("the quick brown fox", "end_turn", 4))
    other = respond(200, [JSON], answer("the quick red fox", "max_tokens", 8))
    async with ScriptedUpstream(active) as one, ScriptedUpstream(other) as two:
        config = tmp_path / "gateway.toml"
        config.write_text(
            f'upstream = "{one.url}"\ndata_dir = "{tmp_path}"\n[shadow]\nslot = "s"\nshare = 1.0\n'
            f'[providers.p]\nurl = "{two.url}"\n[[slots.s]]\nupstreams = ["p"]\nname = "p"\n'
        )
        async with controlled({"config": str(config)}) as at:
            async with RawClient(at.host, at.port) as client:
                headers = [JSON, ("anthropic-version", "2023-06-01"), ("x-claude-code-session-id", "the-session")]
                await client.post("/v1/messages", headers, json.dumps(ASKED).encode())
                assert b"brown" in (await client.read_response()).body
            assert at.control.shadow is not None
            await at.control.shadow.idle()
    record = Recorded(tmp_path)
    told = await asyncio.to_thread(compared, tmp_path)
    (pair,) = told["pairs"]
    assert (pair["original"]["slot"], pair["copy"]["slot"]) == ("blue", "s")
    assert (pair["original"]["stop_reason"], pair["copy"]["stop_reason"]) == ("end_turn", "max_tokens")
    assert (pair["original"]["tokens"], pair["copy"]["tokens"]) == ([7, 4], [7, 8])
    assert pair["likeness"] == pytest.approx(0.75)
    summary = told["summary"]
    assert (summary["pairs"], summary["same_status"], summary["same_stop_reason"]) == (1, 1.0, 0.0)
    assert summary["output_ratio"] == 2.0
    assert [turn["slot"] for turn in await asyncio.to_thread(record.turns, "the-session")] == ["blue"]


def compared(home: Path, code: int = 0) -> Any:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(["slot", "compare", "--json", "--data-dir", str(home)]) == code, err.getvalue()
    return json.loads(out.getvalue())


def test_where_nothing_was_copied_it_says_so(tmp_path: Path) -> None:
    home = tmp_path / "empty"
    with contextlib.redirect_stderr(io.StringIO()) as err:
        assert main(["slot", "compare", "--data-dir", str(home)]) == 1
    assert err.getvalue().startswith(f"kgb slot compare: {home}/dewey.db is not there: nothing has been recorded yet")

"""The commands that speak to running gateways, against a real one in a process of its own."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from kgb_gateway.__main__ import main
from kgb_gateway.commands.control.words import percent, share_of

CONFIG = """
data_dir = "{home}"
port = 0
chain = ["request_id", "dewey_tap", "auth", "fiedler"]
[links.dewey_tap]
librarian = "external"
[[slots.lab]]
name = "{name}"
upstreams = ["base"]
"""


@attrs.frozen
class Gateway:
    """``kgb serve --demo`` with a configuration that can be written anew."""

    config: Path
    home: Path
    process: "subprocess.Popen[str]"
    url: str

    def kgb(self, *words: str, code: int = 0) -> str:
        """What a command prints."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            found = main([*words, "--config", str(self.config)])
        assert found == code, (words, found, out.getvalue(), err.getvalue())
        return out.getvalue() + err.getvalue()


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    for name in ("XDG_RUNTIME_DIR", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    config, home = tmp_path / "gateway.toml", tmp_path / "home"
    config.write_text(CONFIG.format(home=home, name="first"))
    argv = [sys.executable, "-m", "kgb_gateway", "serve", "--demo", "--config", str(config)]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    url = ""
    for line in process.stderr:
        if found := re.search(r"listening on (http://[\d.:]+)", line):
            url = found[1]
            break
    try:
        yield Gateway(config, home, process, url)
    finally:
        process.kill()
        process.communicate()


def asked(url: str) -> None:
    body = b'{"model": "claude-x", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}'
    request = urllib.request.Request(f"{url}/v1/messages", body, {"anthropic-version": "2023-06-01"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 200


def test_a_day_with_a_gateway(gateway: Gateway) -> None:
    assert "blue is active; there are blue, lab, green" in gateway.kgb("slot", "show")
    assert "lab is active" in gateway.kgb("slot", "use", "lab")
    asked(gateway.url)
    shown = gateway.kgb("status")
    assert "slot lab" in shown
    assert "record: sound" in shown
    assert "no live exchanges" in shown
    assert json.loads(gateway.kgb("status", "--json"))[f"a.{gateway.process.pid}"]["slots"]["active"] == "lab"
    assert "blue gets 5% of the sessions" in gateway.kgb("slot", "canary", "blue", "5%")
    assert "lab is active\n" in gateway.kgb("slot", "rollback")
    assert "blue is active" in gateway.kgb("slot", "rollback", "--why", "done")
    history = gateway.kgb("slot", "history").splitlines()
    assert [line.split()[2] for line in history[1:]] == ["use", "canary", "rollback", "rollback"]
    assert history[-1].endswith("done")
    assert "there is no slot 'nope'" in gateway.kgb("slot", "use", "nope", code=1)
    assert "no [[preflight]] is configured" in gateway.kgb("slot", "preflight", "lab", code=1)
    assert "no live exchange" in gateway.kgb("exchanges", "kill", "0193", code=1)

    gateway.config.write_text(CONFIG.format(home=gateway.home, name="second"))
    assert "slots.lab[0].name: 'first' -> 'second'" in gateway.kgb("reload", "--dry-run")
    assert "a: in force" in gateway.kgb("reload")
    assert "nothing is different" in gateway.kgb("reload")
    gateway.config.write_text(gateway.config.read_text() + "portt = 1\n")
    assert "nothing has changed" in gateway.kgb("reload", code=1)
    gateway.config.write_text(CONFIG.format(home=gateway.home, name="third"))
    gateway.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 20
    while "nothing is different" not in gateway.kgb("reload", "--dry-run"):
        assert time.monotonic() < deadline
        time.sleep(0.02)

    assert "a: draining, 0 open exchanges" in gateway.kgb("drain")
    assert gateway.process.wait(20) == 0
    assert "no gateway is running" in gateway.kgb("status", code=3)
    assert not list((gateway.home / "run").glob("*"))


def test_a_slot_outlives_a_gateway_that_was_killed(gateway: Gateway) -> None:
    gateway.kgb("slot", "use", "lab")
    os.kill(gateway.process.pid, signal.SIGKILL)
    gateway.process.wait()
    assert json.loads((gateway.home / "slots-kgb.json").read_text())["active"] == "lab"
    assert "no gateway is running" in gateway.kgb("slot", "show", code=3)


def test_route_explain_needs_no_gateway(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(CONFIG.format(home=tmp_path, name="only"))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        words = ["route", "explain", "POST", "/v1/messages", "--slot", "lab", "--model", "m", "--config", str(config)]
        assert main(words) == 0
        assert main([*words, "--json"]) == 0
    text, _, said = out.getvalue().partition("{")
    assert "route     only: it takes everything" in text
    assert "credential: the caller's, as it is" in text
    assert json.loads("{" + said)["route"] == "only"


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.5%", 0.005), ("0.25", 0.25)])
def test_shares_are_read_and_written(text: str, share: float) -> None:
    assert share_of(text) == pytest.approx(share)
    assert share_of(percent(share)) == pytest.approx(share)


@pytest.mark.parametrize("text", ["0%", "100%", "5", "x", "-1%", "nan", ""])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 5%"):
        share_of(text)

"""The commands' words: what they take, print, and exit with."""

import argparse
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fiedler_proxy import __main__ as fiedler
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.options import INTERRUPTED, add_options, flags_of, tell_faults
from kgb_gateway import __main__ as kgb
from kgb_gateway.commands import serve
from kgb_gateway.settings import KGB

Said = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in (*KGB.variables, *KGB.upstream_variables, KGB.config_variable):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


def parsed(*argv: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return flags_of(parser.parse_args(argv))


# Options.


def test_what_is_not_given_is_left_to_others() -> None:
    assert parsed() == {}


def test_every_option() -> None:
    assert parsed(
        *("--config", "c.toml", "--host", "h", "--port", "0", "--upstream", "http://u", "--data-dir", "d"),
        *("--instance", "i", "--chain", "auth, acme:Link,,fiedler", "--no-uvloop"),
    ) == {
        "config": "c.toml",
        "host": "h",
        "port": 0,
        "upstream": "http://u",
        "data_dir": "d",
        "instance": "i",
        "chain": ("auth", "acme:Link", "fiedler"),
        "uvloop": "never",
    }


def test_an_empty_option_is_a_given_one() -> None:
    assert parsed("--chain", "", "--host", "") == {"chain": (), "host": ""}


# Faults.


def test_faults_stand_one_on_a_line(capsys: Said) -> None:
    assert tell_faults("kgb serve", SettingsError(["one: is wrong", "two\x1b[31m\nthree: forged"])) == 1
    assert capsys.readouterr().err == (
        "kgb serve: cannot start as configured, 2 faults:\n  one: is wrong\n  two\\x1b[31m\\nthree: forged\n"
    )


@pytest.mark.parametrize("command", ["serve", "check", "chain"])
def test_every_command_that_reads_settings_tells_all_faults(command: str, tmp_path: Path, capsys: Said) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text('prot = 1\nchain = ["acces_log"]\n')
    assert kgb.main([command, "--config", str(config), "--host", "0.0.0.0"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    head, *faults = said.err.splitlines()
    assert head == f"kgb {command}: cannot start as configured, {len(faults)} faults:"
    assert f"  {config}: prot: there is no such key (did you mean 'port'?)" in faults
    assert any(fault.startswith(f"  {config}: chain: no link is called 'acces_log'") for fault in faults)


def test_fiedler_tells_its_faults(capsys: Said) -> None:
    assert fiedler.main(["serve", "--host", "0.0.0.0"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("fiedler serve: cannot start as configured, 1 fault:\n  flag --host: host: '0.0.0.0' can be")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "COMMAND"),
        (["serv"], "invalid choice: 'serv'"),
        (["serve", "--port", "x"], "invalid int value: 'x'"),
        (["serve", "--log-level", "loud"], "invalid choice: 'loud'"),
        (["serve", "--demo", "--upstream", "http://u"], "--demo brings its own upstream"),
    ],
)
def test_wrong_words_are_2(argv: list[str], said: str, capsys: Said) -> None:
    with pytest.raises(SystemExit) as left:
        kgb.main(argv)
    assert left.value.code == 2
    assert said in capsys.readouterr().err


def test_ctrl_c_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(serve, "load", interrupted)
    assert kgb.main(["serve"]) == INTERRUPTED
    monkeypatch.setattr(fiedler, "load", interrupted)
    assert fiedler.main(["serve"]) == INTERRUPTED


# kgb check.


def test_check_prints_what_is_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text("[timeouts]\nidle = 7\n[links.access_log]\nmax_pending = 9\n")
    monkeypatch.setenv("KGB_PORT", "1234")
    assert kgb.main(["check", "--config", str(config), "--instance", "b"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert 'instance = "b"  # flag --instance' in lines
    assert "port = 1234  # environment KGB_PORT" in lines
    assert f"idle = 7.0  # {config}" in lines
    assert 'host = "127.0.0.1"  # default' in lines
    table = tomllib.loads(said.out)
    assert table["links"]["access_log"]["max_pending"] == 9
    assert table["links"]["auth"]["required"] == "auto"


def test_check_warns_of_what_is_ignored(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://localhost:8089")
    assert kgb.main(["check"]) == 0
    said = capsys.readouterr()
    assert said.err == (
        "kgb check: warning: the environment's ANTHROPIC_BASE_URL names this server's own listener and is ignored\n"
    )
    assert 'url = "https://api.anthropic.com"  # default' in said.out


@pytest.mark.parametrize(
    "text", ['[tls]\ncert = "/nowhere.pem"\n', '[upstream]\nurl = "https://u"\nca_file = "/nowhere.pem"\n']
)
def test_check_looks_at_the_files_that_serving_needs(text: str, tmp_path: Path, capsys: Said) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(text)
    assert kgb.main(["check", "--config", str(config)]) == 1
    assert "'/nowhere.pem' cannot be used" in capsys.readouterr().err


def test_check_starts_nothing(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(f'data_dir = "{tmp_path}/data"\n[links.access_log]\npath = "{tmp_path}/access.jsonl"\n')
    assert kgb.main(["check", "--config", str(config)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["gateway.toml"]


# kgb chain.


def test_chain_as_text(tmp_path: Path, capsys: Said) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text('[links.BodyLimit]\ntoken = "hush"\n')
    names = "request_id,auth,tests.test_chain:BodyLimit"
    assert kgb.main(["chain", "--config", str(config), "--chain", names]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines if line[:2].strip()] == [
        "1  request_id",
        "2  guard",
        "3  health",
        "4  auth",
        "5  tests.test_chain:BodyLimit [transforms, reads_body]",
    ]
    assert "      limit = 1024" in lines
    assert '      token = "[REDACTED]"' in lines
    assert "      tests.test_chain:BodyLimit; named in chain" in lines


def test_chain_as_json(capsys: Said) -> None:
    assert kgb.main(["chain", "--json", "--chain", "auth,fiedler"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["guard", "health", "auth", "provider_route"]
    assert rows[3]["settings"] == {"prefixes": ["/anthropic-proxy"], "merge_models": False}
    assert set(rows[0]) == {"position", "name", "source", "settings", "powers", "why"}


# kgb serve, before it runs; the process is tests/integration/test_serve_process.py's matter.


def test_fiedler_goes_behind_the_chain() -> None:
    assert serve.load_with({}, {}, fiedler=True).document.chain == KGB.chain
    assert serve.load_with({}, {}, fiedler=True).document.slot == "green"
    assert serve.load_with({"chain": ("auth",)}, {}, fiedler=True).document.chain == ("auth", "fiedler")
    given: dict[str, object] = {"chain": ("auth", "fiedler")}
    assert serve.load_with(given, {}, fiedler=True).document.chain == ("auth", "fiedler")
    assert serve.load_with(given, {}, fiedler=False).document.chain == ("auth", "fiedler")


# kgb version.


def test_version(capsys: Said) -> None:
    assert kgb.main(["version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("kgb-gateway ")
    assert lines[2].startswith("aiohttp 3.14.")
    assert lines[2].endswith("(C parser)")
    with pytest.raises(SystemExit) as left:
        kgb.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out.splitlines() == lines[:1]


def test_every_command_has_help(capsys: Said) -> None:
    with pytest.raises(SystemExit):
        kgb.main(["--help"])
    said = capsys.readouterr().out
    for command in ("serve", "check", "chain", "keys", "demo", "compare", "version"):
        assert f"    {command} " in said
        with pytest.raises(SystemExit) as left:
            kgb.main([command, "--help"])
        assert left.value.code == 0


def test_the_packages_load_nothing_that_is_not_asked_for() -> None:
    code = "import sys, kgb_gateway, fiedler_proxy; print('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "False\n"


def test_serve_does_not_pay_for_the_other_commands() -> None:
    """All of them together take as long to import as the gateway takes to start."""
    code = (
        "import sys; from kgb_gateway.__main__ import main\n"
        "try: main(['serve', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted(n for n in sys.modules if n.startswith(('kgb_gateway.dewey', 'kgb_gateway.compare'))), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "serve" in done.stdout


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["nonsense"]])
def test_whoever_names_no_command_is_told_of_all(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        kgb.main(argv)
    said = "".join(capsys.readouterr())
    if argv == ["--version"]:
        assert re.fullmatch(r"kgb-gateway \d\S*\n", said)
    else:
        assert all(name in said for name in kgb.COMMANDS)

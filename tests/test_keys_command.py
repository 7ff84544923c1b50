"""``kgb keys``: what it prints, where, and how it fails."""

import argparse
import json
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kgb_gateway.commands import keys
from kgb_gateway.keyring import Keyring, Verdict
from kgb_gateway.keys_file import TOKEN, read_keys_file

TOKEN_TEXT = re.compile(TOKEN.pattern.decode())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


class Kgb:
    """Runs ``kgb keys ...`` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = ""
        self.err = ""

    def __call__(self, *words: str | Path) -> int:
        parser = argparse.ArgumentParser("kgb")
        keys.add_parser(parser.add_subparsers(required=True))
        try:
            args = parser.parse_args(["keys", *map(str, words)])
            code: int = args.run(args)
        except SystemExit as end:
            code = int(end.code or 0)
        self.out, self.err = self._capsys.readouterr()
        return code

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def kgb(capsys: pytest.CaptureFixture[str]) -> Kgb:
    return Kgb(capsys)


def verdict(path: Path, token: str) -> Verdict:
    keyring = Keyring(path)
    keyring.load()
    return keyring.check(token.encode())[0]


class TestCreate:
    def test_the_token_alone_goes_to_standard_output(self, kgb: Kgb, path: Path) -> None:
        assert kgb("create", "alice", "--keys-file", path) == 0
        assert TOKEN_TEXT.fullmatch(kgb.out.removesuffix("\n"))
        assert kgb.out.strip() not in kgb.err
        assert "asks every caller for a key" in kgb.err
        assert verdict(path, kgb.out.strip()) is Verdict.VALID
        assert kgb("create", "bob", "--keys-file", path) == 0
        assert "asks every caller" not in kgb.err

    def test_scopes_and_expiry_are_kept(self, kgb: Kgb, path: Path) -> None:
        words = ["--scope", "path:/v1/messages", "--scope", "path:/v1/models", "--expires", "90d"]
        assert kgb("create", "alice", "--keys-file", path, *words) == 0
        (key,) = read_keys_file(path)[0].keys
        assert key.scopes == ("path:/v1/messages", "path:/v1/models")
        assert key.expires is not None
        assert abs(key.expires - time.time() - 90 * 86400) < 60

    def test_json_holds_all_of_it(self, kgb: Kgb, path: Path) -> None:
        assert kgb("create", "alice", "--keys-file", path, "--expires", "2099-01-31", "--json") == 0
        document = kgb.document
        assert verdict(path, document["token"]) is Verdict.VALID
        assert document["expires"] == "2099-01-31T00:00:00Z"
        assert document | {"id": "", "token": "", "created": ""} == {
            "id": "",
            "name": "alice",
            "scopes": [],
            "created": "",
            "expires": "2099-01-31T00:00:00Z",
            "state": "active",
            "grace_until": None,
            "token": "",
            "keys_file": str(path),
        }

    def test_a_name_in_use_is_refused(self, kgb: Kgb, path: Path) -> None:
        kgb("create", "alice", "--keys-file", path)
        assert kgb("create", "alice", "--keys-file", path) == 1
        assert kgb.out == ""
        assert "'alice' already" in kgb.err

    @pytest.mark.parametrize(
        ("words", "why"),
        [
            (["a b"], "cannot name a key"),
            (["alice", "--scope", "admin"], "unknown scope 'admin'"),
            (["alice", "--scope", "path:/a/../b"], "plain path"),
            (["alice", "--expires", "soon"], "'soon' is no expiry"),
            (["alice", "--expires", "90"], "no expiry"),
            (["alice", "--expires", "90y"], "no length of time"),
            (["alice", "--expires", "0d"], "future"),
            (["alice", "--expires", "2020-01-01"], "future"),
            (["alice", "--expires", "999999999w"], "future"),
            (["alice", "--expires", "2099-02-30"], "no expiry"),
            ([], "required"),
        ],
    )
    def test_wrong_words_are_a_usage_error_and_make_nothing(
        self, kgb: Kgb, path: Path, words: list[str], why: str
    ) -> None:
        assert kgb("create", *words, "--keys-file", path) == 2
        assert why in kgb.err
        assert not path.exists()


class TestList:
    def test_it_shows_every_key_and_no_secret(self, kgb: Kgb, path: Path) -> None:
        kgb("create", "alice", "--keys-file", path, "--scope", "path:/v1")
        token = kgb.out.strip()
        kgb("create", "bob", "--keys-file", path, "--expires", "2099-01-01")
        kgb("create", "carol", "--keys-file", path)
        kgb("revoke", "carol", "--keys-file", path)
        kgb("rotate", "bob", "--keys-file", path, "--grace", "1h")
        assert kgb("list", "--keys-file", path) == 0
        rows = [re.split(r"  +", line) for line in kgb.out.splitlines()]
        assert rows[0] == ["NAME", "ID", "CREATED", "EXPIRES", "SCOPES", "STATE"]
        assert [(row[0], row[3], row[4]) for row in rows[1:]] == [
            ("alice", "never", "path:/v1"),
            ("bob", "2099-01-01T00:00:00Z", "everything"),
            ("carol", "never", "everything"),
        ]
        assert [row[5].split(",")[0] for row in rows[1:]] == ["active", "active", "revoked"]
        assert "old token until" in rows[2][5]
        text = kgb.out
        assert kgb("list", "--keys-file", path, "--json") == 0
        assert [key["state"] for key in kgb.document] == ["active", "active", "revoked"]
        stored = json.loads(path.read_text())
        secrets = [stored["secret"], token, *(h["hash"] for key in stored["keys"] for h in key["hashes"])]
        for secret in secrets:
            assert secret not in text + kgb.out

    def test_an_expired_key_is_shown_as_such(self, kgb: Kgb, path: Path) -> None:
        kgb("create", "alice", "--keys-file", path, "--expires", "2099-01-01")
        path.write_text(path.read_text().replace("2099-", "2020-"))
        kgb("list", "--keys-file", path, "--json")
        assert kgb.document[0]["state"] == "expired"

    def test_no_file_is_an_empty_list(self, kgb: Kgb, path: Path) -> None:
        assert kgb("list", "--keys-file", path, "--json") == 0
        assert kgb.document == []
        assert "kgb keys create" in kgb.err
        assert not path.exists()

    def test_a_damaged_file_is_an_error(self, kgb: Kgb, path: Path) -> None:
        path.touch(0o600)
        assert kgb("list", "--keys-file", path) == 1
        assert "damaged" in kgb.err


class TestRotateAndRevoke:
    def test_rotation_gives_a_new_token_and_ends_the_old_one(self, kgb: Kgb, path: Path) -> None:
        kgb("create", "alice", "--keys-file", path)
        old = kgb.out.strip()
        assert kgb("rotate", "alice", "--keys-file", path) == 0
        assert TOKEN_TEXT.fullmatch(kgb.out.strip())
        assert (verdict(path, old), verdict(path, kgb.out.strip())) == (Verdict.EXPIRED, Verdict.VALID)

    def test_grace_keeps_the_old_token_alive(self, kgb: Kgb, path: Path) -> None:
        kgb("create", "alice", "--keys-file", path)
        old = kgb.out.strip()
        assert kgb("rotate", "alice", "--keys-file", path, "--grace", "1h", "--json") == 0
        assert (verdict(path, old), verdict(path, kgb.document["token"])) == (Verdict.VALID, Verdict.VALID)
        assert kgb.document["grace_until"] is not None
        assert kgb("rotate", "alice", "--keys-file", path, "--grace", "long") == 2
        assert "no length of time" in kgb.err

    def test_revoking_by_name_or_id_is_final(self, kgb: Kgb, path: Path) -> None:
        kgb("create", "alice", "--keys-file", path, "--json")
        key = kgb.document
        assert kgb("revoke", "alice", "--keys-file", path, "--json") == 0
        assert kgb.document["state"] == "revoked"
        assert verdict(path, key["token"]) is Verdict.REVOKED
        assert kgb("revoke", key["id"], "--keys-file", path) == 0
        assert kgb.out == ""
        assert kgb("rotate", key["id"], "--keys-file", path) == 1

    @pytest.mark.parametrize("command", ["rotate", "revoke"])
    def test_an_unknown_name_is_an_error(self, kgb: Kgb, path: Path, command: str) -> None:
        assert kgb(command, "alice", "--keys-file", path) == 1
        assert "no keys file" in kgb.err
        kgb("create", "bob", "--keys-file", path)
        assert kgb(command, "alice", "--keys-file", path) == 1
        assert "no key 'alice'" in kgb.err


class TestPlace:
    def test_beside_the_configuration_or_where_that_says(self, kgb: Kgb, tmp_path: Path) -> None:
        config = tmp_path / "gateway.toml"
        config.write_text('upstream = "https://api.anthropic.com"\n')
        assert kgb("create", "alice", "--config", config) == 0
        assert (tmp_path / "keys.json").exists()
        config.write_text('[links.auth]\nkeys_file = "sub/other.json"\n')
        assert kgb("create", "alice", "--config", config) == 0
        assert (tmp_path / "sub" / "other.json").exists()
        config.write_text(f'[links.auth]\nkeys_file = "{tmp_path}/abs.json"\n')
        assert kgb("create", "alice", "--config", config) == 0
        assert (tmp_path / "abs.json").exists()

    def test_in_the_data_directory(self, kgb: Kgb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert kgb("create", "alice", "--data-dir", tmp_path / "data") == 0
        assert (tmp_path / "data" / "keys.json").exists()
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
        assert kgb("create", "alice") == 0
        assert (tmp_path / "xdg" / "kgb" / "keys.json").exists()
        monkeypatch.delenv("XDG_DATA_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert kgb("create", "alice") == 0
        assert (tmp_path / "home" / ".local" / "share" / "kgb" / "keys.json").exists()

    def test_only_one_place_may_be_named(self, kgb: Kgb, tmp_path: Path) -> None:
        assert kgb("list", "--config", tmp_path / "a", "--data-dir", tmp_path) == 2

    def test_an_unreadable_configuration_is_an_error(self, kgb: Kgb, tmp_path: Path) -> None:
        assert kgb("list", "--config", tmp_path / "none.toml") == 1
        assert "cannot be read" in kgb.err
        (tmp_path / "bad.toml").write_text("= nonsense")
        assert kgb("list", "--config", tmp_path / "bad.toml") == 1


def test_expiry_is_a_length_of_time_or_an_iso_moment() -> None:
    now = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
    for text, moment in (
        ("90d", now + 90 * 86400),
        ("2w", now + 14 * 86400),
        ("12h", now + 43200),
        ("30m", now + 1800),
        ("45s", now + 45),
        ("2026-11-02", now + 86400),
        ("2026-11-01T01:00:00Z", now + 3600),
        ("2026-11-01T01:00:00+01:00", None),
        ("2026-11-01T03:00+01:00", now + 7200),
        ("2026-11-01 01:00", now + 3600),
    ):
        if moment is None:
            with pytest.raises(ValueError, match="future"):
                keys.parse_expiry(text, now)
        else:
            assert keys.parse_expiry(text, now) == moment, text


def test_commands_that_run_at_once_lose_nothing(path: Path) -> None:
    script = (
        "import sys, argparse; from kgb_gateway.commands import keys; p = argparse.ArgumentParser();"
        "keys.add_parser(p.add_subparsers()); a = p.parse_args(sys.argv[1:]); sys.exit(a.run(a))"
    )
    words = [sys.executable, "-c", script, "keys", "create"]
    running = [
        subprocess.Popen([*words, f"k{number}", "--keys-file", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for number in range(4)
    ]
    tokens = [process.communicate()[0].decode().strip() for process in running]
    assert [process.returncode for process in running] == [0] * 4
    assert {verdict(path, token) for token in tokens} == {Verdict.VALID}

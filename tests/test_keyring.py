"""The keys in force: every change of the file counts at once, and no damage to it lets more callers in."""

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgb_gateway import keyring as keyring_module
from kgb_gateway.caller import Caller
from kgb_gateway.keyring import Keyring, State, Verdict
from kgb_gateway.keys_edit import create_key, revoke_key, rotate_key
from kgb_gateway.keys_file import KeysFileError, read_keys_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def loaded(path: Path) -> Keyring:
    keyring = Keyring(path)
    keyring.load()
    return keyring


def verdict(keyring: Keyring, token: str) -> Verdict:
    return keyring.check(token.encode())[0]


def clobber(path: Path, text: str = '{"version": 1, "secr') -> None:
    """Write into the file itself, as a careless editor would."""
    with open(path, "w") as file:
        file.write(text)


class TestVerdicts:
    def test_a_valid_token_names_its_caller(self, path: Path) -> None:
        key, token = create_key(path, "alice", scopes=("path:/v1",))
        assert loaded(path).check(token.encode()) == (Verdict.VALID, Caller("alice", key.id, ("path:/v1",)))

    @pytest.mark.parametrize(
        "change",
        [
            lambda token: token[:-1],
            lambda token: token + "a",
            lambda token: token + "\n",
            lambda token: token[:-1] + ("a" if token[-1] != "a" else "b"),
            lambda token: token[:15] + token[15:].swapcase(),
            lambda token: token[:15] + "é" * 43,
            lambda token: token[:15],
            lambda token: f"{token}, {token}",
        ],
    )
    def test_a_token_with_the_id_of_a_key_and_another_secret_is_wrong(
        self, path: Path, change: Callable[[str], str]
    ) -> None:
        _, token = create_key(path, "alice")
        assert loaded(path).check(change(token).encode()) == (Verdict.WRONG, None)

    def test_the_secret_of_one_key_does_not_open_another(self, path: Path) -> None:
        _, alice = create_key(path, "alice")
        _, bob = create_key(path, "bob")
        assert verdict(loaded(path), alice[:15] + bob[15:]) is Verdict.WRONG

    @pytest.mark.parametrize(
        "value", ["", "kgb_", "sk-ant-api03-abc", "eyJhbGciOi.x.y", "kgb_0000000000_" + "a" * 43, "KGB_0000000000_a"]
    )
    def test_anything_else_is_foreign(self, path: Path, value: str) -> None:
        create_key(path, "alice")
        assert verdict(loaded(path), value) is Verdict.FOREIGN

    def test_a_key_of_another_gateway_is_foreign(self, path: Path, tmp_path: Path) -> None:
        create_key(path, "alice")
        _, other = create_key(tmp_path / "other.json", "alice")
        keyring = loaded(path)
        assert verdict(keyring, other) is Verdict.FOREIGN
        assert not keyring.holds_key(other.encode())

    def test_an_unknown_id_costs_the_same_steps(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _, token = create_key(path, "alice")
        keyring = loaded(path)
        steps: list[str] = []

        def compare(a: bytes, b: bytes) -> bool:
            steps.append("compare")
            return a == b

        monkeypatch.setattr(keyring_module.hmac, "compare_digest", compare)
        keyring.check(token.encode())
        known, steps[:] = list(steps), []
        keyring.check(b"kgb_0000000000_" + token[15:].encode())
        assert steps == known == ["compare"]

    def test_a_key_expires_at_its_moment(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _, token = create_key(path, "alice", expires=2_000_000_000.0)
        keyring = loaded(path)
        monkeypatch.setattr(keyring_module.time, "time", lambda: 1_999_999_999.9)
        assert verdict(keyring, token) is Verdict.VALID
        monkeypatch.setattr(keyring_module.time, "time", lambda: 2_000_000_000.0)
        assert verdict(keyring, token) is Verdict.EXPIRED

    def test_a_rotated_token_works_through_its_grace_and_not_longer(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, old = create_key(path, "alice")
        _, new = rotate_key(path, "alice", grace=100)
        keyring = loaded(path)
        assert (verdict(keyring, old), verdict(keyring, new)) == (Verdict.VALID, Verdict.VALID)
        later = time.time() + 101
        monkeypatch.setattr(keyring_module.time, "time", lambda: later)
        assert (verdict(keyring, old), verdict(keyring, new)) == (Verdict.EXPIRED, Verdict.VALID)

    def test_only_a_holder_of_the_secret_learns_that_a_key_is_revoked(self, path: Path) -> None:
        _, token = create_key(path, "alice")
        revoke_key(path, "alice")
        keyring = loaded(path)
        assert verdict(keyring, token) is Verdict.REVOKED
        assert verdict(keyring, token[:-1] + ("a" if token[-1] != "a" else "b")) is Verdict.WRONG

    def test_no_token_stays_in_the_keyring(self, path: Path) -> None:
        _, token = create_key(path, "alice")
        keyring = loaded(path)
        keyring.check(token.encode())
        assert token.rpartition("_")[2] not in repr(vars(keyring))


class TestHoldsKey:
    @pytest.mark.parametrize(
        "form", ["{}", "Bearer {}", "a={}; b=c", "{}{}", "kgb_1234567{}", "kgb_{}", "x{}x", "{}\x00"]
    )
    def test_a_token_is_found_wherever_it_stands(self, path: Path, form: str) -> None:
        _, token = create_key(path, "alice")
        assert loaded(path).holds_key(form.format(token, token).encode())

    def test_a_revoked_rotated_or_damaged_token_is_found_too(self, path: Path) -> None:
        _, first = create_key(path, "alice")
        _, second = rotate_key(path, "alice")
        revoke_key(path, "alice")
        keyring = loaded(path)
        for token in (first, second, first[:-5], second[:20] + "!"):
            assert keyring.holds_key(token.encode())

    def test_other_values_are_left_alone(self, path: Path) -> None:
        create_key(path, "alice")
        for value in (b"", b"kgb_", b"kgb_0000000000_" + b"a" * 43, b"sk-ant-api03-x"):
            assert not loaded(path).holds_key(value)

    @given(before=st.text("kgb_0a1", max_size=30), after=st.text("kgb_0a1", max_size=30))
    def test_no_neighbour_hides_a_token(
        self, tmp_path_factory: pytest.TempPathFactory, before: str, after: str
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "neighbours.json"
        if not path.exists():
            token = create_key(path, "alice")[1]
            path.with_suffix(".token").write_text(token)
        token = path.with_suffix(".token").read_text()
        assert loaded(path).holds_key(f"{before}{token}{after}".encode())


class TestChanges:
    def test_keys_made_rotated_and_revoked_count_at_once(self, path: Path) -> None:
        keyring = loaded(path)
        keyring.refresh()
        assert keyring.state is State.ABSENT
        _, alice = create_key(path, "alice")
        keyring.refresh()
        assert (keyring.state, verdict(keyring, alice)) == (State.IN_FORCE, Verdict.VALID)
        _, again = rotate_key(path, "alice")
        keyring.refresh()
        assert (verdict(keyring, alice), verdict(keyring, again)) == (Verdict.EXPIRED, Verdict.VALID)
        revoke_key(path, "alice")
        keyring.refresh()
        assert verdict(keyring, again) is Verdict.REVOKED

    def test_an_unchanged_file_is_not_read_again(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        create_key(path, "alice")
        keyring = loaded(path)
        monkeypatch.setattr(keyring_module, "read_keys_file", lambda path: pytest.fail("read"))
        for _ in range(3):
            keyring.refresh()

    def test_an_edit_of_the_same_size_and_mtime_is_seen(self, path: Path) -> None:
        _, token = create_key(path, "alice")
        keyring = loaded(path)
        status = path.stat()
        text = path.read_text()
        digest = json.loads(text)["keys"][0]["hashes"][0]["hash"]
        clobber(path, text.replace(digest, digest[::-1]))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        keyring.refresh()
        assert verdict(keyring, token) is Verdict.WRONG

    @pytest.mark.parametrize("text", ["", "{", '{"version": 1, "secr', "[]"])
    def test_a_half_written_file_keeps_the_last_good_keys(
        self, path: Path, text: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        _, token = create_key(path, "alice")
        keyring = loaded(path)
        good = path.read_text()
        clobber(path, text)
        for _ in range(5):
            keyring.refresh()
        assert (keyring.state, verdict(keyring, token)) == (State.IN_FORCE, Verdict.VALID)
        assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
        assert "stay in force" in caplog.text
        clobber(path, good)
        keyring.refresh()
        assert verdict(keyring, token) is Verdict.VALID

    def test_a_file_made_readable_for_others_is_not_taken_over(self, path: Path) -> None:
        _, token = create_key(path, "alice")
        keyring = loaded(path)
        revoke_key(path, "alice")
        path.chmod(0o644)
        keyring.refresh()
        assert verdict(keyring, token) is Verdict.VALID
        path.chmod(0o600)
        keyring.refresh()
        assert verdict(keyring, token) is Verdict.REVOKED

    def test_a_file_that_is_gone_refuses_all_and_is_still_recognised(
        self, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        _, token = create_key(path, "alice")
        keyring = loaded(path)
        moved = path.rename(path.with_name("away.json"))
        for _ in range(3):
            keyring.refresh()
        assert (keyring.state, verdict(keyring, token)) == (State.GONE, Verdict.WRONG)
        assert keyring.holds_key(token.encode())
        assert caplog.text.count("is gone") == 1
        moved.rename(path)
        keyring.refresh()
        assert (keyring.state, verdict(keyring, token)) == (State.IN_FORCE, Verdict.VALID)

    def test_a_first_file_that_is_no_good_opens_nothing(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        keyring = loaded(path)
        path.touch(0o600)
        clobber(path)
        for _ in range(3):
            keyring.refresh()
        assert keyring.state is State.UNUSABLE
        assert caplog.text.count("no key is accepted") == 1
        # Whose token this is cannot be known, so it is none to send to a provider.
        assert keyring.holds_key(b"kgb_0000000000_" + b"a" * 43)
        assert verdict(keyring, "kgb_0000000000_" + "a" * 43) is Verdict.WRONG
        path.unlink()
        keyring.refresh()
        assert keyring.state is State.GONE

    def test_a_path_that_cannot_be_looked_at_keeps_the_last_good_keys(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        _, token = create_key(home / "keys.json", "alice")
        keyring = loaded(home / "keys.json")
        (tmp_path / "away").mkdir()
        home.rename(tmp_path / "away" / "home")
        home.touch()  # ENOTDIR from now on
        keyring.refresh()
        keyring.refresh()
        assert (keyring.state, verdict(keyring, token)) == (State.IN_FORCE, Verdict.VALID)

    def test_a_file_that_goes_between_two_looks_is_gone_at_the_next(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        create_key(path, "alice")
        keyring = loaded(path)
        create_key(path, "bob")

        def vanish(path: Path) -> object:
            path.unlink(missing_ok=True)
            return read_keys_file(path)

        monkeypatch.setattr(keyring_module, "read_keys_file", vanish)
        keyring.refresh()
        assert keyring.state is State.IN_FORCE
        keyring.refresh()
        assert keyring.state is State.GONE

    def test_a_bad_file_at_the_start_is_a_fault(self, path: Path) -> None:
        create_key(path, "alice")
        path.chmod(0o640)
        with pytest.raises(KeysFileError, match="chmod 600"):
            Keyring(path).load()

    def test_a_keyring_without_a_file_is_absent_for_ever(self) -> None:
        keyring = Keyring(None)
        keyring.load()
        keyring.refresh()
        assert (keyring.state, verdict(keyring, "kgb_0000000000_" + "a" * 43)) == (State.ABSENT, Verdict.FOREIGN)

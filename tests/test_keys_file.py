"""The keys file: its form, who may read it, and edits that happen whole or not at all."""

import fcntl
import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from kgb_gateway import keys_edit
from kgb_gateway.keys_edit import create_key, revoke_key, rotate_key
from kgb_gateway.keys_file import TOKEN, KeysFileError, read_keys_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def raw(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def rewrite(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(change))


class TestForm:
    def test_a_token_names_its_key_and_has_the_documented_form(self, path: Path) -> None:
        key, token = create_key(path, "alice")
        match = TOKEN.fullmatch(token.encode())
        assert match is not None
        assert match[1].decode() == key.id

    def test_what_is_written_is_read_back(self, path: Path) -> None:
        key, _ = create_key(path, "alice", scopes=("path:/v1",), expires=4_000_000_000.0)
        document, _ = read_keys_file(path)
        (read,) = document.keys
        assert (read.id, read.name, read.scopes, read.expires) == (key.id, "alice", ("path:/v1",), 4_000_000_000.0)
        assert read.hashes == key.hashes
        assert read.revoked is None

    def test_no_token_and_no_part_of_its_secret_is_on_disk(self, path: Path) -> None:
        _, first = create_key(path, "alice")
        _, second = rotate_key(path, "alice", grace=60)
        text = path.read_text()
        for token in (first, second):
            assert token not in text
            assert token.rpartition("_")[2] not in text

    def test_the_file_and_its_lock_are_for_the_owner_alone(self, path: Path) -> None:
        old = os.umask(0)
        try:
            create_key(path, "alice")
        finally:
            os.umask(old)
        modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()}
        assert modes == {"keys.json": 0o600, "keys.json.lock": 0o600}

    def test_two_files_have_two_secrets(self, path: Path, tmp_path: Path) -> None:
        create_key(path, "alice")
        create_key(tmp_path / "other.json", "alice")
        assert raw(path)["secret"] != raw(tmp_path / "other.json")["secret"]

    def test_a_missing_directory_is_made_for_the_owner_alone(self, tmp_path: Path) -> None:
        create_key(tmp_path / "new" / "keys.json", "alice")
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


class TestReading:
    def test_no_file_is_no_fault_of_the_file(self, path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            read_keys_file(path)

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666, 0o610])
    def test_a_file_open_to_others_is_refused_with_the_remedy(self, path: Path, mode: int) -> None:
        create_key(path, "alice")
        path.chmod(mode)
        with pytest.raises(KeysFileError, match=f"chmod 600 {path}"):
            read_keys_file(path)

    def test_a_directory_or_a_pipe_is_refused_and_never_waited_for(self, path: Path) -> None:
        os.mkfifo(path, 0o600)
        with pytest.raises(KeysFileError, match="no regular file"):
            read_keys_file(path)
        with pytest.raises(KeysFileError):
            read_keys_file(path.parent)

    @pytest.mark.parametrize(
        "text",
        ["", "{", "[]", "null", "{}", '{"version": 1}', '{"version": 1, "secret": "canary", "keys": []}', "[" * 100_000,
         "\udcff", '{"version": 1, "secret": 5, "keys": []}'],
    )  # fmt: skip
    def test_a_damaged_file_is_refused_without_an_echo(self, path: Path, text: str) -> None:
        path.touch(0o600)
        path.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(KeysFileError, match="damaged") as caught:
            read_keys_file(path)
        assert "canary" not in str(caught.value)

    @pytest.mark.parametrize(
        ("field", "value", "why"),
        [
            ("id", "short", "id or name"),
            ("name", "a\nb", "id or name"),
            ("name", "", "id or name"),
            ("scopes", ["admin"], "unknown scope"),
            ("scopes", "path:/v1", "JSON"),
            ("scopes", [5], "JSON"),
            ("created", None, "malformed"),
            ("created", "2026-01-01T00:00:00", "JSON"),
            ("expires", "soon", "JSON"),
            ("expires", 5, "JSON"),
            ("revoked", False, "JSON"),
            ("hashes", [{"hash": "00", "until": None}], "malformed"),
            ("hashes", {}, "JSON"),
            ("hashes", None, "JSON"),
        ],
    )
    def test_a_malformed_key_is_refused(self, path: Path, field: str, value: object, why: str) -> None:
        create_key(path, "alice")
        document = raw(path)
        document["keys"][0][field] = value
        rewrite(path, document)
        with pytest.raises(KeysFileError, match=why):
            read_keys_file(path)

    def test_a_missing_field_is_refused(self, path: Path) -> None:
        create_key(path, "alice")
        for field in raw(path)["keys"][0]:
            document = raw(path)
            del document["keys"][0][field]
            (path.parent / "cut.json").touch(0o600)
            rewrite(path.parent / "cut.json", document)
            with pytest.raises(KeysFileError, match="JSON"):
                read_keys_file(path.parent / "cut.json")

    def test_an_unknown_version_a_short_secret_and_a_doubled_id_are_refused(self, path: Path) -> None:
        create_key(path, "alice")
        good = raw(path)
        for change, why in (
            ({"version": 2}, "version"),
            ({"secret": "00"}, "too short"),
            ({"keys": good["keys"] * 2}, "same id"),
        ):
            rewrite(path, good | change)
            with pytest.raises(KeysFileError, match=why):
                read_keys_file(path)

    def test_a_file_that_is_too_large_is_not_read(self, path: Path) -> None:
        create_key(path, "alice")
        os.truncate(path, 17 * 1024 * 1024)
        with pytest.raises(KeysFileError, match="larger"):
            read_keys_file(path)


class TestEdits:
    def test_a_name_in_use_is_refused_until_its_key_is_revoked(self, path: Path) -> None:
        create_key(path, "alice")
        with pytest.raises(KeysFileError, match="'alice' already"):
            create_key(path, "alice")
        revoke_key(path, "alice")
        create_key(path, "alice")
        assert [key.name for key in read_keys_file(path)[0].keys] == ["alice", "alice"]

    def test_the_id_of_a_key_is_no_name_for_another(self, path: Path) -> None:
        key, _ = create_key(path, "alice")
        with pytest.raises(KeysFileError, match="id of a key"):
            create_key(path, key.id)

    @pytest.mark.parametrize("name", ["", " a", "a b", "-a", "a" * 65, "a\n", "ä", "a/b", '"'])
    def test_a_name_that_a_log_could_not_hold_is_refused(self, path: Path, name: str) -> None:
        with pytest.raises(ValueError, match="cannot name a key"):
            create_key(path, name)
        assert not path.exists()

    def test_a_pasted_token_is_refused_as_a_name_without_an_echo(self, path: Path) -> None:
        _, token = create_key(path, "alice")
        with pytest.raises(ValueError, match="no name") as caught:
            create_key(path, token)
        assert token not in str(caught.value)
        for act in (revoke_key, rotate_key):
            with pytest.raises(KeysFileError, match="of that token") as shown:
                act(path, token)
            assert token not in str(shown.value)

    def test_a_key_is_found_by_name_and_by_id(self, path: Path) -> None:
        key, _ = create_key(path, "alice")
        other, _ = create_key(path, "bob")
        assert rotate_key(path, key.id)[0].id == key.id
        assert rotate_key(path, "bob")[0].id == other.id
        assert revoke_key(path, key.id).name == "alice"

    def test_unknown_names_and_missing_files_are_told_apart(self, path: Path) -> None:
        for act in (revoke_key, rotate_key):
            with pytest.raises(KeysFileError, match="no keys file"):
                act(path, "alice")
        assert not path.exists()
        create_key(path, "alice")
        for act in (revoke_key, rotate_key):
            with pytest.raises(KeysFileError, match="no key 'bob'"):
                act(path, "bob")

    def test_revoking_twice_keeps_the_first_moment(self, path: Path) -> None:
        key, _ = create_key(path, "alice")
        first = revoke_key(path, "alice").revoked
        assert first is not None
        again = revoke_key(path, key.id).revoked
        assert again == float(int(first))
        with pytest.raises(KeysFileError, match="name it by its id"):
            revoke_key(path, "alice")

    def test_a_revoked_or_expired_key_is_not_rotated(self, path: Path) -> None:
        key, _ = create_key(path, "alice")
        create_key(path, "bob", expires=1.0)
        revoke_key(path, "alice")
        with pytest.raises(KeysFileError, match="is revoked"):
            rotate_key(path, key.id)
        with pytest.raises(KeysFileError, match="is expired"):
            rotate_key(path, "bob")

    def test_a_rotation_cuts_every_older_grace_short(self, path: Path) -> None:
        create_key(path, "alice")
        rotate_key(path, "alice", grace=10_000)
        key, _ = rotate_key(path, "alice", grace=0)
        ends = [entry.until for entry in key.hashes[1:]]
        assert len(ends) == 2
        assert ends[0] == ends[1]

    def test_rotations_keep_a_bounded_past(self, path: Path) -> None:
        create_key(path, "alice")
        for _ in range(keys_edit.PAST_HASHES + 5):
            rotate_key(path, "alice")
        assert len(read_keys_file(path)[0].keys[0].hashes) == keys_edit.PAST_HASHES + 1

    def test_a_damaged_file_is_never_overwritten(self, path: Path) -> None:
        path.touch(0o600)
        path.write_text("{half")
        for act in (create_key, revoke_key, rotate_key):
            with pytest.raises(KeysFileError, match="damaged"):
                act(path, "alice")
        assert path.read_text() == "{half"

    def test_a_failed_write_leaves_the_old_file_and_no_debris(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        create_key(path, "alice")
        before = path.read_bytes()

        def full(fd: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(keys_edit.os, "fsync", full)
        with pytest.raises(KeysFileError, match="No space left"):
            create_key(path, "bob")
        assert path.read_bytes() == before
        assert sorted(entry.name for entry in path.parent.iterdir()) == ["keys.json", "keys.json.lock"]

    def test_a_symbolic_link_stays_one(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        link = tmp_path / "keys.json"
        link.symlink_to(tmp_path / "real" / "k.json")
        create_key(link, "alice")
        create_key(link, "bob")
        assert link.is_symlink()
        assert len(read_keys_file(tmp_path / "real" / "k.json")[0].keys) == 2

    def test_concurrent_edits_lose_nothing(self, path: Path) -> None:
        names = [f"k{number}" for number in range(12)]
        start = threading.Barrier(4)

        def work(mine: list[str]) -> None:
            start.wait()
            for name in mine:
                create_key(path, name)

        threads = [threading.Thread(target=work, args=(names[part::4],)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(key.name for key in read_keys_file(path)[0].keys) == sorted(names)

    def test_a_held_lock_is_reported(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        create_key(path, "alice")
        monkeypatch.setattr(keys_edit, "LOCK_SECONDS", 0.0)
        with open(f"{path}.lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(KeysFileError, match="another command"):
                create_key(path, "bob")
        create_key(path, "bob")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_what_root_edits_stays_the_service_users(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        home.mkdir(0o700)
        os.chown(home, 12345, 12346)
        path = home / "keys.json"
        create_key(path, "alice")
        create_key(path, "bob")
        assert {(entry.stat().st_uid, entry.stat().st_gid) for entry in home.iterdir()} == {(12345, 12346)}

"""The SQLite database as a file: opened, migrated, checkpointed.

Owns the connection's settings and the numbered migrations. One connection alone writes and checkpoints: the SQLite of many
distributions can lose pages when two connections reset the write-ahead log at once (fixed in 3.51.3), so readers open the file
read-only and never write to it.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import resources
from pathlib import Path

APPLICATION = 0x4B474231
"""``PRAGMA application_id``: "KGB1"."""

BUSY_SECONDS = 10.0
CACHE_KIB = 64 * 1024
CHECKPOINT_PAGES = 4000
"""Pages of the write-ahead log after which it is copied into the database (16 MB)."""


class StoreError(Exception):
    """The store cannot be used as it is: the message says why and what to do."""


def migrations() -> list[tuple[int, str]]:
    """The numbered migrations, in order: number and SQL."""
    entries = (resources.files(__package__) / "schema").iterdir()
    return sorted(
        (int(entry.name.split("_", maxsplit=1)[0]), entry.read_text(encoding="utf-8"))
        for entry in entries
        if entry.name.endswith(".sql")
    )


def newest() -> int:
    """The number of the last migration."""
    return migrations()[-1][0]


def open_writer(path: Path) -> sqlite3.Connection:
    """The one connection that writes; the file is made, 0600, or brought up to date in place. StoreError when it cannot be."""
    if not path.exists():
        for left in ("-wal", "-shm"):  # of a store that was taken away: SQLite would take its log for the new one's
            path.with_name(path.name + left).unlink(missing_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    with _connecting(path, "rwc") as connection:
        _check(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")
        migrate(connection)
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that can only read. StoreError when there is no store, or a newer one."""
    if not path.exists():
        raise StoreError(f"{path} is not there: nothing has been recorded yet, or --data-dir names another directory")
    with _connecting(path, "ro") as connection:
        if _check(connection, path) < newest():
            raise StoreError(
                f"{path} is of an older version; run `kgb dewey serve` (or `kgb serve`) once to upgrade it"
            )
    return connection


def migrate(connection: sqlite3.Connection, target: int | None = None) -> None:
    """Apply what is missing, each in a transaction of its own, so that an interrupted upgrade goes on where it stood."""
    for number, sql in migrations():
        if number <= version_of(connection) or (target is not None and number > target):
            continue
        connection.executescript(
            f"BEGIN IMMEDIATE;\n{sql}\nPRAGMA user_version = {number};\nPRAGMA application_id = {APPLICATION};\nCOMMIT;"
        )


def version_of(connection: sqlite3.Connection) -> int:
    """The number of the last migration that was applied, 0 for a new file."""
    number: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return number


def checkpoint(connection: sqlite3.Connection, *, whole: bool = False) -> None:
    """Copy the write-ahead log into the database as far as readers allow; ``whole``: and empty it."""
    connection.execute(f"PRAGMA wal_checkpoint({'TRUNCATE' if whole else 'PASSIVE'})").fetchall()


@contextmanager
def _connecting(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """A connection that stays open, unless what is done with it here fails."""
    with ExitStack() as undo:
        try:
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}",  # quote() would leave what SQLite reads as URI syntax
                timeout=BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
                uri=True,
                cached_statements=256,
            )
            undo.callback(connection.close)
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            connection.execute("PRAGMA trusted_schema = OFF")
            yield connection
        except sqlite3.Error as error:
            raise _wrong(path, error) from None
        undo.pop_all()


def _check(connection: sqlite3.Connection, path: Path) -> int:
    """Its version. StoreError when it is a newer one, or no store of ours."""
    version = version_of(connection)
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    if version and application != APPLICATION:
        raise StoreError(f"{path} is the database of another program; name another --data-dir")
    if version > newest():
        raise StoreError(
            f"{path} has version {version}, and this program knows up to {newest()}: it was written by a newer one; "
            f"use that, or move the file away and run `kgb dewey rebuild`"
        )
    return version


def _wrong(path: Path, error: sqlite3.Error) -> StoreError:
    return StoreError(f"{path} cannot be opened: {error}; if it is damaged, `kgb dewey rebuild` makes it anew")

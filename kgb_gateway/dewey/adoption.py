"""Adoption: what a gateway that died and did not come back has left in shared memory, taken to disk for it.

Owns nothing: it is what the gateway itself does when it starts. A gateway that starts meanwhile waits a moment.
"""

import contextlib
import logging
from pathlib import Path

from kgb_gateway.journal import Journal, JournalOptions
from kgb_gateway.record import NO_EXCHANGE, STARTED, Kind
from kgb_gateway.tail import LEAST, Tail, TailError, tails_of

_log = logging.getLogger("kgb.dewey")


def adopt(home: Path, spool: Path, version: str) -> list[str]:
    """Take to disk what dead instances on ``home`` left; their names. Living ones hold their tails and are left alone."""
    adopted = []
    for instance, path in tails_of(home.resolve()).items():
        with contextlib.suppress(TailError, OSError):
            tail = Tail.open(path, LEAST)
            journal = Journal(spool, instance, tail, JournalOptions(watermark=0), version)
            journal.start()
            # Whatever it had open has no end.
            journal.append(Kind.NOTE, NO_EXCHANGE, STARTED)
            journal.stop()
            adopted.append(instance)
            _log.info("what instance %s left is on disk: it is not running", instance)
    return adopted

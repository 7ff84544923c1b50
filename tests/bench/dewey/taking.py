"""One librarian at work on one spool, timed: ``python -m tests.bench.dewey.taking HOME BYTES``.

A process of its own, as the librarian is: what else a process holds costs it time. Prints seconds as JSON: {"ingest", "seal"}.
"""

import json
import os
import sys
import time
from pathlib import Path

from kgb_gateway.dewey.librarian import Librarian, lock
from kgb_gateway.dewey.serving import calm_collector
from kgb_gateway.segments import segments_in
from tests.spools import prices


def take(home: Path, total: int) -> dict[str, float]:
    """Take in ``total`` bytes of bodies, then pack their segments. RuntimeError when anything was not read, or not packed."""
    calm_collector()
    with lock(home):
        librarian = Librarian(home, prices())
        totals, spool = librarian.ingest.totals, librarian.layout.spool
        try:
            began = time.perf_counter()
            while totals.bytes < total and librarian.step():
                pass
            done = time.perf_counter()
            for name in segments_in(spool):
                os.utime(spool / str(name), (0, 0))  # nobody has written it for long
            packing = time.perf_counter()
            librarian.step()
            packed = time.perf_counter()
        finally:
            librarian.close()
    if totals.bytes != total or totals.problems or segments_in(spool):
        raise RuntimeError(f"{total} bytes were written; read: {totals}; left: {segments_in(spool)}")
    return {"ingest": done - began, "seal": packed - packing}


if __name__ == "__main__":
    print(json.dumps(take(Path(sys.argv[1]), int(sys.argv[2]))))

"""The bench's load generator with two more loads: ``python -m tests.bench.growth.load '<spec as JSON>'``.

It owns what growth asks for beyond the figures of one size: exchanges timed as a whole, and paced streams whose server is watched
meanwhile. Like the generator that it adds to, it is one thread with plain sockets, and every loop is bounded.
"""

import contextlib
import json
import socket
import statistics
import sys
import time

from tests.bench import load, proc
from tests.bench.load import LoadError, Paced, Result, Spec, connect, drain, percentile, request, until


def whole(spec: Spec) -> Result:
    """One connection, a request each ``gap`` ms where the last one is answered by then: milliseconds from the first byte sent to the last
    one read. ``sent``: MB (10^6 bytes) of bodies in all ``total`` exchanges."""
    wire, gap = request(spec), float(spec["gap"]) / 1000
    times: list[float] = []
    with connect(spec) as sock:
        drain_after(sock, wire)  # the first one on a connection opens another one to the upstream
        due = time.perf_counter()
        for _ in until(float(spec["seconds"])):
            start = time.perf_counter()
            drain_after(sock, wire)
            now = time.perf_counter()
            times.append((now - start) * 1000)
            due = max(now, due + gap)
            time.sleep(max(0.0, due - now))
    total = len(times) + 1
    return {
        "count": len(times),
        "total": total,
        "sent": total * int(spec.get("body", 0)) / 1e6,
        "p50": statistics.median(times),
        "p99": percentile(times, 0.99),
    }


def drain_after(sock: socket.socket, wire: bytes) -> None:
    """Send a request and read its answer to the end."""
    sock.sendall(wire)
    drain(sock)


def watched(spec: Spec) -> Result:
    """``paced``, and of the server meanwhile: microseconds of processor an event, MB (10^6 bytes) that it holds. ``streams``: how many."""
    crowd = Paced(spec)
    proxy = proc.serving(int(spec["proxy"])) if spec.get("proxy") else []
    with contextlib.closing(crowd.crowd):
        crowd.open()
        crowd.run(float(spec.get("warm", 1.0)))
        crowd.delays.clear()
        used, start = proc.Usage.of(proxy), time.perf_counter()
        crowd.run(float(spec["seconds"]))
        cpu, seconds = proc.Usage.of(proxy).since(used), time.perf_counter() - start
        held = proc.memory(proxy) / 1e6
    if crowd.broken:
        raise LoadError(f"{crowd.broken} of {crowd.wanted} streams broke")
    times = [delay / 1e6 for delay in crowd.delays]
    return {
        "count": len(times),
        "rate": len(times) / seconds,
        "cpu": cpu / max(1, len(times)) * 1e6,
        "held": held,
        "streams": crowd.wanted,
        "p50": statistics.median(times),
        "p99": percentile(times, 0.99),
    }


MODES = {**load.MODES, "whole": whole, "watched": watched}


def main() -> int:
    """Exit status 1 and a line on standard error when the answers were not what was asked for."""
    spec: Spec = json.loads(sys.argv[1])
    try:
        print(json.dumps(MODES[spec["mode"]](spec)))
    except (LoadError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Compares an API asked directly with the same API asked through a gateway: status, headers, bytes and pacing.

Owns the raw client, the built-in requests and the verdicts behind ``kgb compare``. It shares no code with the relay
it judges but the list of hop-by-hop headers and the parsing of base URLs, so that a fault there cannot hide itself.
"""

from kgb_gateway.compare.judge import Aspect, Verdict, judge
from kgb_gateway.compare.requests import Request, RequestError
from kgb_gateway.compare.run import Comparison, compare
from kgb_gateway.compare.wire import Answer, WireError, ask

__all__ = [
    "Answer",
    "Aspect",
    "Comparison",
    "Request",
    "RequestError",
    "Verdict",
    "WireError",
    "ask",
    "compare",
    "judge",
]

"""Whether a request may use this listener at all: pure decisions.

A web page that a user happens to have open must not be able to use the gateway: not by DNS rebinding (Host), not by a
cross-site request (Origin, Sec-Fetch-Site). The functions say why not; the guard link turns that into an answer.
"""

import ipaddress
import re
from collections.abc import Collection

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@/?#\\\s]+)(?::(\d*))?")


def host_of(authority: str) -> str | None:
    """The host of ``host[:port]``, lower case, brackets of IPv6 taken off; None when it is malformed."""
    match = _HOST.fullmatch(authority)
    if match is None:
        return None
    return match.group(1).strip("[]").lower().rstrip(".") or None


def is_address(host: str) -> bool:
    """Whether ``host`` is an IP address literal, which no DNS answer can rebind."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def host_allowed(authority: str, allowed: Collection[str]) -> bool:
    """Whether a Host (or absolute-form authority) may be served.

    IP literals, ``localhost`` and names below it, and what ``allowed`` lists (lower case; ``*`` is everything,
    ``*.example.org`` everything below it) may; any other name may be one that an attacker's DNS points here.
    """
    host = host_of(authority)
    if host is None:
        return False
    if host == "localhost" or host.endswith(".localhost") or is_address(host) or "*" in allowed or host in allowed:
        return True
    return any(host.endswith(pattern[1:]) for pattern in allowed if pattern.startswith("*."))


def origin_allowed(origin: str, authority: str, allowed: Collection[str]) -> bool:
    """Whether a page of ``origin`` may call: one that the gateway itself served, or a listed one (``*``: any)."""
    if "*" in allowed or origin in allowed:
        return True
    scheme, _, rest = origin.lower().partition("://")
    return scheme in ("http", "https") and rest == authority.lower()


def fetch_site_allowed(site: str) -> bool:
    """Whether Sec-Fetch-Site (W3C Fetch Metadata) speaks of no foreign page. Absent: not a browser's request."""
    return site in ("same-origin", "none", "")

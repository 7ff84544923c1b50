"""An upstream: a base URL with its timeouts, limits and TLS facts. Pure data and its parsing."""

import re
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

import attrs
from yarl import URL

DEFAULT_PORTS = {"http": 80, "https": 443}

_BASE_PATH = re.compile(r"(/[!-\"$-.0->@-~]+)*")


@attrs.frozen
class Timeouts:
    """Seconds; 0 switches one off. There is no total limit: an answer may take as long as it moves.

    ``connect``: name resolution, TCP and TLS together. ``first_byte``: from the last byte of the request that moved
    to the first of the answer; models think long. ``idle``: between bytes of the answer (or of a caller's upload);
    it stands still while the caller is the one not reading.
    """

    connect: float = 10.0
    first_byte: float = 900.0
    idle: float = 600.0

    @cached_property
    def shortest(self) -> float:
        """Of the two that a running exchange has: which of them counts is known only when the head is there."""
        return min(self.first_byte, self.idle) or max(self.first_byte, self.idle)


@attrs.frozen
class PoolLimits:
    """Bounds of one upstream's connections.

    ``connections`` open at once; beyond them ``queue`` exchanges wait up to ``queue_timeout`` seconds, further ones
    get 503. ``keepalive``: seconds an idle connection is kept; ``idle``: how many are kept.
    """

    connections: int = 8192
    queue: int = 1024
    queue_timeout: float = 30.0
    keepalive: float = 30.0
    idle: int = 256


@attrs.frozen(cache_hash=True)
class Upstream:
    """A base URL to relay to.

    ``unix`` is the path of a Unix socket, or "". ``base_path`` (raw, no trailing slash) stands before every target.
    ``ca_file`` adds a private CA to verify against instead of the system's; ``server_name`` replaces the host in SNI
    and certificate check. ``via``: the pseudonym to announce in Via, "" for none.
    """

    name: str
    scheme: str
    host: str
    port: int
    unix: str = ""
    base_path: str = ""
    ca_file: str = ""
    server_name: str = ""
    timeouts: Timeouts = Timeouts()
    limits: PoolLimits = PoolLimits()
    host_header: bytes = attrs.field(init=False, eq=False, repr=False)

    @host_header.default
    def _host_header(self) -> bytes:
        return self.authority.encode("idna" if not self.authority.isascii() else "ascii")

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """What stands in the Host header: the port only where it is not the scheme's own."""
        if self.unix:
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The base URL, for people."""
        if self.unix:
            return f"unix:{self.unix}" + (f" {self.base_path}" if self.base_path else "")
        return f"{self.scheme}://{self.authority}{self.base_path}"

    @property
    def where(self) -> str:
        """Host and port (or socket) for error messages."""
        return self.unix or f"{self.host}:{self.port}"

    def target(self, sent: str) -> str:
        """The target to put on the wire for the caller's target ``sent``."""
        return sent if sent == "*" else self.base_path + sent


def parse_upstream(
    text: str,
    name: str = "default",
    *,
    ca_file: str = "",
    server_name: str = "",
    timeouts: Timeouts | None = None,
    limits: PoolLimits | None = None,
) -> Upstream:
    """An Upstream from ``https://host[:port][/base]``, ``unix:/path`` or ``http+unix://%2Fpath[/base]``.

    ValueError says what is wrong with the text. A trailing slash is dropped; user information, query and fragment
    are refused, since they would be lost or leak.
    """
    common = {
        "name": name,
        "ca_file": ca_file,
        "server_name": server_name,
        "timeouts": timeouts or Timeouts(),
        "limits": limits or PoolLimits(),
    }
    text = text.strip()
    if text.startswith("unix:"):
        return Upstream(scheme="http", host="localhost", port=80, unix=_socket_path(text[5:]), **common)  # type: ignore[arg-type]
    if text.startswith("http+unix://"):
        socket, slash, base = text[12:].partition("/")
        path = _base_path(slash + base)
        return Upstream(scheme="http", host="localhost", port=80, unix=_socket_path(unquote(socket)), base_path=path, **common)  # type: ignore[arg-type]  # fmt: skip
    scheme, host, port, base = _parse_http(text)
    return Upstream(scheme=scheme, host=host, port=port, base_path=base, **common)  # type: ignore[arg-type]


def _parse_http(text: str) -> tuple[str, str, int, str]:
    try:
        url = URL(text, encoded=True)
        host, port = url.host, url.port
    except ValueError as error:
        raise ValueError(f"{text!r} is not a URL: {error}") from None
    if url.scheme not in DEFAULT_PORTS or not host:
        raise ValueError(f"{text!r} is not an http(s) base URL; write https://host, http://host:port or unix:/path")
    if url.user is not None or url.password is not None:
        raise ValueError(f"the URL of {host!r} carries user information; give the credential in a header instead")
    if "?" in text or "#" in text:
        raise ValueError(f"the base URL of {host!r} carries a query or fragment")
    if not port or not 0 < port < 65536:
        raise ValueError(f"{text!r} names no port between 1 and 65535")
    _, _, rest = text.partition("://")
    _, slash, base = rest.partition("/")
    return url.scheme, host, port, _base_path(slash + base)


def _base_path(raw: str) -> str:
    base = raw.rstrip("/")
    if not _BASE_PATH.fullmatch(base):
        raise ValueError(f"the base path {base!r} holds an empty segment or a character no path may have")
    return base


def _socket_path(path: str) -> str:
    if not Path(path).is_absolute():
        raise ValueError(f"the Unix socket {path!r} must be an absolute path")
    return path

"""What the configuration may say, and what it says: flags over environment over file over defaults.

Owns every setting's name, type, bounds and default; ``docs/configuration.rst`` has an entry for each. It composes no
chain and opens nothing but the configuration file.
"""

import ipaddress
import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from fiedler_proxy.config import (
    Faults,
    absolute,
    at_least,
    between,
    build,
    from_text,
    hints_of,
    nearest,
    one_of,
    read_toml,
    setting,
    sound,
)
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.guard import host_of
from fiedler_proxy.router import BLUE, Tables
from fiedler_proxy.routing import CanaryTable, Maker, PreflightTable, ProviderTable, RouteTable, ShadowTable
from fiedler_proxy.upstream import PoolLimits, Timeouts, Upstream, parse_upstream

DEFAULT_UPSTREAM = "https://api.anthropic.com"

KEYS_FILE = "keys.json"
"""The name of a keys file whose place is not configured."""


def _upstream_wrong(text: str) -> str:
    try:
        parse_upstream(text)
    except ValueError as error:
        if "@" in text and text.strip() in str(error):
            return "is not an http(s) base URL (and is not shown, since it seems to hold a credential)"
        return str(error)
    return ""


def _path_wrong(value: str) -> str:
    if value and not value.startswith("/"):
        return "must begin with / (or be empty to switch it off)"
    return "must be a path alone, without query" if "?" in value or "#" in value else ""


def _host_wrong(value: str) -> str:
    if not value:
        return "must not be empty"
    return "must be an address or a name alone" if set(value) & set("/@?#, ") else ""


def _hosts_wrong(values: tuple[str, ...]) -> str:
    for value in values:
        if value != "*" and host_of(value.removeprefix("*.")) != value.removeprefix("*.").strip("[]").lower():
            return f"{value!r} is no host name; write it without scheme and port, '*.example.org' for all below, or '*'"
    return ""


def _origins_wrong(values: tuple[str, ...]) -> str:
    for value in values:
        scheme, _, rest = value.partition("://")
        if value not in ("*", "null") and (not scheme or value != value.lower() or host_of(rest) is None):
            return f"{value!r} is no origin; write it as browsers do, 'https://page.example' or with a port, or '*'"
    return ""


def _token_wrong(value: str) -> str:
    good = value.replace("-", "").replace("_", "").replace(".", "").isalnum() and value.isascii()
    return "" if not value or good else "must be a name of letters, digits, '-', '_' and '.'"


def _instance_wrong(value: str) -> str:
    return _token_wrong(value) if value else "must not be empty"


@attrs.frozen
class UpstreamTable:
    """``[upstream]``: where requests go. ``upstream = "URL"`` is the short form of ``url`` alone."""

    url: str = setting(DEFAULT_UPSTREAM, check=_upstream_wrong)
    name: str = setting("default", check=_instance_wrong)
    ca_file: str = setting("", path=True)
    server_name: str = setting("")


_UPSTREAM = UpstreamTable()


@attrs.frozen
class TimeoutsTable:
    """``[timeouts]``: seconds; 0 switches a limit off (see ``fiedler_proxy.upstream.Timeouts``).

    ``keepalive``: how long an idle caller's connection is kept, and how long a first request may take to come;
    ``upstream_keepalive``: how long an idle upstream connection is kept; ``drain``: how long open streams may go on
    after SIGTERM.
    """

    connect: float = setting(10.0, check=at_least(0))
    first_byte: float = setting(900.0, check=at_least(0))
    idle: float = setting(600.0, check=at_least(0))
    keepalive: float = setting(75.0, check=at_least(1))
    upstream_keepalive: float = setting(30.0, check=at_least(0))
    drain: float = setting(120.0, check=at_least(0))


@attrs.frozen
class LimitsTable:
    """``[limits]``. ``request_body``: bytes, 0 for none; ``request_line`` and ``header_field``: bytes; ``connections``
    open at once to one upstream; ``queue``: requests that wait for one, for ``queue_timeout`` seconds; ``idle``:
    upstream connections that are kept."""

    request_body: int = setting(1024**3, check=at_least(0))
    request_line: int = setting(65536, check=between(1024, 1024**2))
    header_field: int = setting(65536, check=between(1024, 1024**2))
    connections: int = setting(8192, check=at_least(1))
    queue: int = setting(1024, check=at_least(0))
    queue_timeout: float = setting(30.0, check=at_least(0))
    idle: int = setting(256, check=at_least(0))


@attrs.frozen
class TlsTable:
    """``[tls]``: PEM files with which the gateway itself listens; empty for plain HTTP."""

    cert: str = setting("", path=True)
    key: str = setting("", path=True)


@attrs.frozen
class HealthTable:
    """``[health]``: the paths answered locally; "" leaves a path to the upstream."""

    health: str = setting("/health", check=_path_wrong)
    live: str = setting("/healthz", check=_path_wrong)
    ready: str = setting("/readyz", check=_path_wrong)


def _reuse_wrong(value: bool) -> str:
    return "this system lets no two processes share a port" if value and not hasattr(socket, "SO_REUSEPORT") else ""


@attrs.frozen
class Document:
    """The configuration file's own keys; the tables below ``[links]`` belong to the links."""

    host: str = setting("127.0.0.1", check=_host_wrong)
    port: int = setting(8089, check=between(0, 65535))
    upstream: UpstreamTable = setting(_UPSTREAM)
    data_dir: Path = setting(Path("~/.local/share/kgb"), path=True)
    instance: str = setting("a", check=_instance_wrong)
    chain: tuple[str, ...] = setting(("request_id", "access_log", "dewey_tap", "auth", "fiedler"))
    allowed_hosts: tuple[str, ...] = setting((), check=_hosts_wrong)
    allowed_origins: tuple[str, ...] = setting((), check=_origins_wrong)
    via: str = setting("", check=_token_wrong)
    forwarded: bool = setting(False)
    reuse_port: bool = setting(False, check=_reuse_wrong)
    uvloop: str = setting("auto", check=one_of("auto", "always", "never"))
    dewey_url: str = setting("")
    timeouts: TimeoutsTable = setting(TimeoutsTable())
    limits: LimitsTable = setting(LimitsTable())
    tls: TlsTable = setting(TlsTable())
    health: HealthTable = setting(HealthTable())
    runtime_dir: str = setting("", path=True)
    slot: str = setting("blue", check=_instance_wrong)
    providers: Mapping[str, ProviderTable] = setting({})
    slots: Mapping[str, tuple[RouteTable, ...]] = setting({})
    canary: CanaryTable = setting(CanaryTable())
    shadow: ShadowTable = setting(ShadowTable())
    preflight: tuple[PreflightTable, ...] = setting(())
    links: Mapping[str, object] = setting({})


TABLES: Mapping[str, type] = {
    "": Document, "upstream": UpstreamTable, "timeouts": TimeoutsTable, "limits": LimitsTable, "tls": TlsTable,
    "health": HealthTable, "canary": CanaryTable, "shadow": ShadowTable,
}  # fmt: skip
"""Every table of the file with the class that says what it holds."""


@attrs.frozen
class Program:
    """What differs between the servers: ``name``, defaults, and which environment variable sets which key.

    ``upstream_variables`` are asked in order; one that names the server's own listener is ignored with a warning.
    """

    name: str
    port: int
    chain: tuple[str, ...]
    variables: Mapping[str, str]
    upstream_variables: Sequence[str]
    config_variable: str
    slot: str = "blue"


FIEDLER = Program(
    "fiedler",
    8081,
    ("fiedler_key", "provider_route"),
    {"FIEDLER_HOST": "host", "FIEDLER_PORT": "port", "FIEDLER_DATA_DIR": "data_dir"},
    ("FIEDLER_UPSTREAM",),
    "FIEDLER_CONFIG",
    "green",
)


@attrs.frozen
class Settings:
    """The effective settings of one server.

    ``sources`` tells of each key that was given where it came from; ``warnings`` what was ignored. ``tables``: providers and slots;
    ``environment``: the upstream that the environment names, "" for none.
    """

    program: str
    document: Document
    upstream: Upstream
    config_file: Path | None = None
    sources: Mapping[str, str] = attrs.field(factory=dict)
    warnings: tuple[str, ...] = ()
    tables: Tables | None = None
    environment: str = ""

    @property
    def host(self) -> str:
        """Where to listen."""
        return self.document.host

    @property
    def port(self) -> int:
        """The port; 0 takes a free one."""
        return self.document.port

    @property
    def data_dir(self) -> Path:
        """Where the server keeps what it keeps."""
        return self.document.data_dir.expanduser()

    @property
    def base_dir(self) -> Path:
        """What relative paths of the links are relative to: the configuration's directory, else ``data_dir``."""
        return self.config_file.parent.absolute() if self.config_file is not None else self.data_dir

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the listener."""
        return is_loopback(self.host)

    def ssl_context(self) -> ssl.SSLContext | None:
        """The TLS context of the listener. SettingsError when its files cannot be used."""
        tls = self.document.tls
        if not tls.cert:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        for key, path in (("cert", tls.cert), ("key", tls.key)):
            try:
                if path:
                    Path(path).read_bytes()
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or error
                raise SettingsError([f"tls.{key}: {path!r} cannot be used: {why}"]) from None
        try:
            context.load_cert_chain(tls.cert, tls.key or None, password=_no_passphrase)
        except (OSError, ValueError) as error:
            raise SettingsError([f"tls.cert: {tls.cert!r} cannot be used: {error}"]) from None
        return context


def _no_passphrase() -> str:
    raise ValueError("its key is encrypted, and nobody is there to type the passphrase")


@attrs.define
class Draft:
    """Settings as far as they could be read: what is at fault has its default, so that the search can go on.

    ``complete``: the file could be read; else nobody knows what it would have said.
    """

    settings: Settings
    complete: bool = True

    def place(self, own: Faults, faults: Faults) -> None:
        """Move ``own`` to ``faults``, each with the source of the key it speaks of."""
        sources = self.settings.sources
        for fault in own.found:
            keys = [key for key in sources if fault.startswith(key) and fault[len(key) :][:1] in (":", ".", "[", " ")]
            faults.found.append(f"{sources[max(keys, key=len)]}: {fault}" if keys else fault)


def read(program: Program, flags: Mapping[str, object], environ: Mapping[str, str], faults: Faults) -> Draft:
    """The settings from ``flags`` (dotted keys; ``config``: the file), ``environ`` and the file, faults collected."""
    named = flags.get("config") or environ.get(program.config_variable) or None
    path = Path(str(named)).expanduser() if named else None
    given = Given()
    unreadable = len(faults.found)
    if path is not None:
        table = absolute(Document, read_toml(path, faults), path.parent.absolute())
        for key, value in table.items():
            given.put([key], value, str(path))
    complete = len(faults.found) == unreadable
    given.read_environment(program, environ, faults)
    for key, value in flags.items():
        if key != "config":
            given.put(key.split("."), value, f"flag --{key.replace('_', '-')}")
    own_defaults = {
        "port": program.port,
        "chain": program.chain,
        "slot": program.slot,
        "data_dir": str(_default_data_dir(environ)),
    }
    given.values = {**own_defaults, **given.values}
    if not given.sources.get("upstream.url", "").startswith("flag"):
        given.read_upstream(program, environ)
    own = Faults()
    document: Document = build(Document, given.values, "", own)
    if document is None:
        document = build(Document, sound(Document, given.values), "", Faults())
    upstream = _upstream(document)
    if _is_own(upstream, document.host, document.port):
        own.add("upstream", f"names this server's own listener, {upstream.where}; set it to the provider's base URL")
    if document.tls.key and not document.tls.cert:
        own.add("tls.key", "is given without tls.cert; give the certificate too, or neither")
    settings = Settings(program.name, document, upstream, path, given.sources, tuple(given.warnings))
    tables = Maker(upstream, own, settings.base_dir, environ).tables(document.providers, document.slots)
    settings = attrs.evolve(settings, tables=tables, environment=given.environment)
    _check_slots(document, tables, own)
    draft = Draft(settings, complete)
    draft.place(own, faults)
    return draft


def _check_slots(document: Document, tables: Tables, faults: Faults) -> None:
    """Slots that are named where none is."""
    known = (BLUE, *tables.slots)
    for key, name in (("slot", document.slot), ("shadow.slot", document.shadow.slot)):
        if name and name not in known:
            faults.add(key, f"there is no slot {name!r}{nearest(name, known)}; there are {', '.join(known)}")


def _default_data_dir(environ: Mapping[str, str]) -> Path:
    home = environ.get("XDG_DATA_HOME") or ""
    return (Path(home) if os.path.isabs(home) else Path("~/.local/share")) / "kgb"


@attrs.define
class Given:
    """What was given so far, the later over the earlier: ``values`` as TOML has them, ``sources`` by dotted key."""

    values: dict[str, Any] = attrs.field(factory=dict)
    sources: dict[str, str] = attrs.field(factory=dict)
    warnings: list[str] = attrs.field(factory=list)
    environment: str = ""

    def put(self, path: Sequence[str], value: object, source: str) -> None:
        """Set the key at ``path``; a table is laid over the one that is there, key by key."""
        if list(path) == ["upstream"] and not isinstance(value, Mapping):
            path = ("upstream", "url")
        inner = self.values
        for depth, part in enumerate(path):
            self.sources[".".join(path[: depth + 1])] = source
            if depth == len(path) - 1 and not isinstance(value, Mapping):
                inner[part] = value
            elif not isinstance(inner.get(part), dict):
                inner[part] = {}
            inner = inner[part]
        for key, item in value.items() if isinstance(value, Mapping) else ():
            self.put([*path, str(key)], item, source)

    def read_environment(self, program: Program, environ: Mapping[str, str], faults: Faults) -> None:
        """What the variables say, the upstream's aside."""
        hints = hints_of(Document)
        for variable, key in program.variables.items():
            text, source = environ.get(variable), f"environment {variable}"
            if not text:
                continue
            try:
                self.put([key], from_text(hints[key], text), source)
            except ValueError:
                faults.add(f"{source}: {key}", f"{text!r} cannot be read as {key}")

    def read_upstream(self, program: Program, environ: Mapping[str, str]) -> None:
        """CONTRACTS: the variables in order; a trailing /v1/messages is dropped; our own listener is no upstream."""
        host, port = self.values.get("host", "127.0.0.1"), self.values["port"]
        for variable in program.upstream_variables:
            url = (environ.get(variable) or "").strip().rstrip("/").removesuffix("/v1/messages")
            if not url:
                continue
            try:
                own = _is_own(parse_upstream(url), str(host), port if isinstance(port, int) else 0)
            except ValueError:
                own = False
            if not own:
                self.environment = url
                self.put(["upstream"], url, f"environment {variable}")
                return
            self.warnings.append(f"the environment's {variable} names this server's own listener and is ignored")


def _upstream(document: Document) -> Upstream:
    table, timeouts, limits = document.upstream, document.timeouts, document.limits
    return parse_upstream(
        table.url,
        table.name,
        ca_file=table.ca_file,
        server_name=table.server_name,
        timeouts=Timeouts(timeouts.connect, timeouts.first_byte, timeouts.idle),
        limits=PoolLimits(
            limits.connections, limits.queue, limits.queue_timeout, timeouts.upstream_keepalive, limits.idle
        ),
    )


def is_loopback(host: str) -> bool:
    """Whether ``host`` is an address (or the name) of this machine alone."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_own(upstream: Upstream, host: str, port: int) -> bool:
    if upstream.unix or not port or upstream.port != port:
        return False
    mine, theirs = _plain(host), _plain(upstream.host)
    everywhere = ("0.0.0.0", "::")
    if mine in everywhere:
        return theirs in everywhere or is_loopback(theirs)
    return theirs == mine or (mine == "127.0.0.1" and theirs in everywhere)


def _plain(host: str) -> str:
    """``host`` in one spelling: that of IPv4 for mapped addresses, and for what is called localhost."""
    text = host.strip("[]").lower().rstrip(".")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "127.0.0.1" if text == "localhost" else text
    text = str(getattr(address, "ipv4_mapped", None) or address)
    return "127.0.0.1" if text == "::1" else text

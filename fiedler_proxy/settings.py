"""What the configuration may say, and what it says: flags over environment over file over defaults.

Owns every setting's name, type, bounds and default; ``docs/configuration.rst`` has an entry for each. It composes no
chain and opens nothing but the configuration file.
"""

import ipaddress
import json
import os
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs

from fiedler_proxy.chain import Chain
from fiedler_proxy.config import Faults, at_least, between, build, from_text, keys_of, one_of, read_toml, setting
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.headers import REDACTED
from fiedler_proxy.upstream import PoolLimits, Timeouts, Upstream, parse_upstream

DEFAULT_UPSTREAM = "https://api.anthropic.com"

KEYS_FILE = "keys.json"


def _upstream_wrong(value: object) -> str:
    try:
        if isinstance(value, str):
            parse_upstream(value)
    except ValueError as error:
        return str(error)
    return ""


def _path_wrong(value: str) -> str:
    return "" if not value or value.startswith("/") else "must begin with / (or be empty to switch it off)"


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
    ca_file: str = setting("")
    server_name: str = setting("")


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

    cert: str = setting("")
    key: str = setting("")


@attrs.frozen
class HealthTable:
    """``[health]``: the paths answered locally; "" leaves a path to the upstream."""

    health: str = setting("/health", check=_path_wrong)
    live: str = setting("/healthz", check=_path_wrong)
    ready: str = setting("/readyz", check=_path_wrong)


@attrs.frozen
class Document:
    """The configuration file's own keys; the tables below ``[links]`` belong to the links."""

    host: str = setting("127.0.0.1", check=lambda value: "" if value else "must not be empty")
    port: int = setting(8089, check=between(0, 65535))
    upstream: str | Mapping[str, object] = setting(DEFAULT_UPSTREAM)
    data_dir: Path = setting(Path("~/.local/share/kgb"))
    instance: str = setting("a", check=_instance_wrong)
    chain: tuple[str, ...] = setting(("request_id", "access_log", "auth"))
    allowed_hosts: tuple[str, ...] = setting(())
    allowed_origins: tuple[str, ...] = setting(())
    via: str = setting("", check=_token_wrong)
    forwarded: bool = setting(False)
    uvloop: str = setting("auto", check=one_of("auto", "always", "never"))
    dewey_url: str = setting("")
    timeouts: TimeoutsTable = setting(TimeoutsTable())
    limits: LimitsTable = setting(LimitsTable())
    tls: TlsTable = setting(TlsTable())
    health: HealthTable = setting(HealthTable())
    links: Mapping[str, object] = setting({})


TABLES: Mapping[str, type] = {
    "": Document, "upstream": UpstreamTable, "timeouts": TimeoutsTable, "limits": LimitsTable, "tls": TlsTable,
    "health": HealthTable,
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


FIEDLER = Program(
    "fiedler",
    8081,
    ("provider_route",),
    {"FIEDLER_HOST": "host", "FIEDLER_PORT": "port", "FIEDLER_DATA_DIR": "data_dir"},
    ("FIEDLER_UPSTREAM",),
    "FIEDLER_CONFIG",
)


@attrs.frozen
class Settings:
    """The effective settings of one server.

    ``sources`` tells of each key that was given where it came from; ``warnings`` what was ignored.
    """

    program: str
    document: Document
    upstream: Upstream
    config_file: Path | None = None
    sources: Mapping[str, str] = attrs.field(factory=dict)
    warnings: tuple[str, ...] = ()

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
        try:
            context.load_cert_chain(tls.cert, tls.key or None)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError([f"tls.cert {tls.cert!r} cannot be used: {error}"]) from None
        return context


@attrs.define
class Draft:
    """Settings as far as they could be read; ``settings`` is None when a fault was found."""

    chain: tuple[str, ...]
    links: Mapping[str, object]
    settings: Settings | None
    sources: Mapping[str, str] = attrs.field(factory=dict)

    def place(self, own: Faults, faults: Faults) -> None:
        """Move ``own`` to ``faults``, each with the source of the key it speaks of."""
        for fault in own.found:
            key = fault.partition(":")[0]
            while key and key not in self.sources:
                key = key.rpartition(".")[0]
            faults.found.append(f"{self.sources[key]}: {fault}" if key else fault)


def read(program: Program, flags: Mapping[str, object], environ: Mapping[str, str], faults: Faults) -> Draft:
    """The settings from ``flags`` (dotted keys; ``config``: the file), ``environ`` and the file, faults collected."""
    named = flags.get("config") or environ.get(program.config_variable) or None
    path = Path(str(named)).expanduser() if named else None
    values = read_toml(path, faults) if path is not None else {}
    sources: dict[str, str] = {}
    _note(values, "", str(path), sources)
    warnings: list[str] = []
    _from_environment(program, environ, values, sources, faults)
    for key, value in flags.items():
        if key != "config":
            _put(values, key, value)
            sources[key] = f"flag --{key.replace('_', '-')}"
    values.setdefault("port", program.port)
    values.setdefault("chain", program.chain)
    values.setdefault("data_dir", str(_default_data_dir(environ)))
    if "upstream" not in flags:
        _upstream_from_environment(program, environ, values, sources, warnings)
    own = Faults()
    document = build(Document, values, "", own)
    upstream = _upstream(values, document, own)
    if document is not None and upstream is not None and _is_own(upstream, document.host, document.port):
        own.add("upstream", f"names this server's own listener, {upstream.where}; set it to the provider's base URL")
    chain = values["chain"] if isinstance(values["chain"], (list, tuple)) else ()
    links = values.get("links", {})
    settings = None
    if document is not None and upstream is not None:
        settings = Settings(program.name, document, upstream, path, sources, tuple(warnings))
    draft = Draft(tuple(map(str, chain)), links if isinstance(links, Mapping) else {}, settings, sources)
    draft.place(own, faults)
    return draft


def _default_data_dir(environ: Mapping[str, str]) -> Path:
    home = environ.get("XDG_DATA_HOME") or ""
    return (Path(home) if os.path.isabs(home) else Path("~/.local/share")) / "kgb"


def _note(table: Mapping[str, Any], prefix: str, source: str, sources: dict[str, str]) -> None:
    for key, value in table.items():
        if isinstance(value, Mapping) and not (prefix + key).startswith("links."):
            _note(value, f"{prefix}{key}.", source, sources)
        sources[prefix + key] = source


def _put(values: dict[str, Any], key: str, value: object) -> None:
    table, _, last = key.rpartition(".")
    for part in table.split(".") if table else ():
        inner = values.setdefault(part, {})
        values = inner if isinstance(inner, dict) else {}
    values[last] = value


def _from_environment(
    program: Program, environ: Mapping[str, str], values: dict[str, Any], sources: dict[str, str], faults: Faults
) -> None:
    hints = {key: field.type for key, field in keys_of(Document).items()}
    for variable, key in program.variables.items():
        text = environ.get(variable)
        if not text:
            continue
        try:
            _put(values, key, from_text(hints[key], text))
            sources[key] = f"environment {variable}"
        except ValueError:
            faults.add(f"environment {variable}: {key}", f"{text!r} cannot be read as {key}")


def _upstream_from_environment(
    program: Program,
    environ: Mapping[str, str],
    values: dict[str, Any],
    sources: dict[str, str],
    warnings: list[str],
) -> None:
    """CONTRACTS: the variables in order; a trailing /v1/messages is dropped; our own listener is not an upstream."""
    for variable in program.upstream_variables:
        url = (environ.get(variable) or "").strip().rstrip("/").removesuffix("/v1/messages")
        if not url:
            continue
        host, port = str(values.get("host", "127.0.0.1")), values["port"]
        try:
            own = _is_own(parse_upstream(url), host, port if isinstance(port, int) else 0)
        except ValueError:
            own = False
        if own:
            warnings.append(f"the environment's {variable} names this server's own listener and is ignored")
            continue
        table = values.get("upstream")
        values["upstream"] = {**table, "url": url} if isinstance(table, Mapping) else url
        sources["upstream"] = f"environment {variable}"
        return


def _upstream(values: Mapping[str, Any], document: Document | None, faults: Faults) -> Upstream | None:
    given = values.get("upstream", DEFAULT_UPSTREAM)
    table = build(UpstreamTable, given if isinstance(given, Mapping) else {"url": given}, "upstream", faults)
    if table is None or document is None:
        return None
    timeouts, limits = document.timeouts, document.limits
    try:
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
    except ValueError as error:
        faults.add("upstream", str(error))
        return None


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
    mine = host.strip("[]").lower()
    theirs = upstream.host.lower()
    if theirs == mine:
        return True
    everywhere = mine in ("0.0.0.0", "::", "") or is_loopback(mine)
    return everywhere and (is_loopback(theirs) or theirs in ("0.0.0.0", "::"))


def effective(settings: Settings, chain: Chain | None = None) -> str:
    """The effective configuration as TOML, each key's source as a comment, secrets redacted."""
    document = settings.document
    lines = [f"# {settings.program}: the effective configuration"]
    tables: list[tuple[str, Any]] = []
    for key, field in keys_of(Document).items():
        value = getattr(document, field.name)
        if key == "links" or key == "upstream":
            continue
        if attrs.has(type(value)):
            tables.append((key, value))
        else:
            lines.append(_line(key, value, settings.sources.get(key)))
    upstream = settings.upstream
    source = settings.sources.get("upstream.url") or settings.sources.get("upstream")
    lines += ["", "[upstream]", _line("url", _url(upstream), source), _line("name", upstream.name, None),
              _line("ca_file", upstream.ca_file, None), _line("server_name", upstream.server_name, None)]  # fmt: skip
    for name, table in tables:
        lines += ["", f"[{name}]"]
        for key, field in keys_of(type(table)).items():
            lines.append(_line(key, getattr(table, field.name), settings.sources.get(f"{name}.{key}")))
    for entry in chain.entries if chain is not None else ():
        if entry.settings():
            lines += ["", f"[links.{entry.name if entry.name.isidentifier() else json.dumps(entry.name)}]"]
            lines += [_line(key, value, None) for key, value in entry.settings().items()]
    return "\n".join(lines) + "\n"


def _url(upstream: Upstream) -> str:
    if not upstream.unix:
        return upstream.url
    quoted = upstream.unix.replace("/", "%2F")
    return f"http+unix://{quoted}{upstream.base_path}" if upstream.base_path else f"unix:{upstream.unix}"


def _line(key: str, value: object, source: str | None) -> str:
    return f"{key} = {_toml(value)}  # {source or 'default'}"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple, frozenset, set)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    text = str(value)
    parts = urlsplit(text) if "://" in text and "@" in text else None
    if parts is not None and (parts.username or parts.password):
        text = text.replace(parts.netloc, f"{REDACTED}@{parts.netloc.rpartition('@')[2]}")
    return json.dumps(text, ensure_ascii=False)

"""The peers: gateways that others made, each set up as its own documentation says for speed, one process, its usual log to a file.

``install_peers`` beside this file installs them; they are looked for where it puts them, then on PATH. It owns how each is found, set
up and named, and starts nothing.
"""

import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.bench.place import Command, Missing, Place

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".peers"
SLOW_START = 90.0
"""Seconds that those have whose modules alone take ten to be read."""


PROGRAMS = {
    "haproxy": ("sbin/haproxy", "haproxy"),
    "mitmproxy": ("bin/mitmdump", "mitmdump"),
    "litellm": ("bin/litellm", "litellm"),
    "portkey": ("node_modules/.bin/gateway", "portkey-gateway"),
    "claude-code-router": ("node_modules/.bin/ccr", "ccr"),
}
"""Of each peer: its program below its directory, and what it is called on PATH."""


def find(peer: str) -> str:
    """The program of a peer."""
    path, program = PROGRAMS[peer]
    own = HOME / peer / path
    if own.exists():
        return str(own)
    found = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if not found:
        raise Missing(f"{program} is neither in {HOME.name} nor on PATH: tests/bench/install_peers {peer}")
    return found


def version(peer: str) -> str:
    """As its package says, or else as it says itself."""
    try:
        program = Path(find(peer)).resolve()
    except Missing:
        return "absent"
    for parent in list(program.parents)[:3]:
        if (parent / "package.json").exists():
            return str(json.loads((parent / "package.json").read_text(encoding="utf-8"))["version"])
    for found in program.parents[1].glob(f"lib/python3*/site-packages/{peer}-*.dist-info"):
        return found.name.removeprefix(f"{peer}-").removesuffix(".dist-info")
    done = subprocess.run([program, "-v"], capture_output=True, text=True, check=False, timeout=30)
    told = re.search(r"\d+\.\d[\w.+~-]*", done.stdout + done.stderr)
    return told[0] if told else "unknown"


HAPROXY_CONFIG = """
global
    nbthread 1
    log stdout format raw local0
defaults
    mode http
    log global
    option httplog
    option http-no-delay
    http-reuse always
    timeout connect 10s
    timeout client 600s
    timeout server 600s
    timeout http-keep-alive 600s
listen far
    bind 127.0.0.1:{port} backlog 4096
    server far 127.0.0.1:{upstream}
"""


def haproxy(place: Place) -> Command:
    """Relay bytes as they come, both ways, kept alive both ways."""
    found = find("haproxy")
    text = HAPROXY_CONFIG.format(port=place.port, upstream=place.upstream)
    return Command((found, "-db", "-f", str(place.write("haproxy.cfg", text))))


def mitmproxy(place: Place) -> Command:
    """mitmdump in reverse mode; bodies pass as they come, and a line is logged for each exchange."""
    options = {"stream_large_bodies": "1", "keep_host_header": "true", "confdir": f"{place.directory}/mitmproxy"}
    words = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
    listen = ("--listen-host", "127.0.0.1", "--listen-port", str(place.port))
    found = find("mitmproxy")
    return Command((found, "--mode", f"reverse:http://127.0.0.1:{place.upstream}", *listen, *words), patience=30.0)


LITELLM_CONFIG = """
model_list:
  - model_name: bench
    litellm_params:
      model: anthropic/bench
      api_base: http://127.0.0.1:{upstream}
      api_key: bench
general_settings:
  master_key: {key}
litellm_settings:
  set_verbose: false
  telemetry: false
"""


def litellm(place: Place) -> Command:
    """The proxy of LiteLLM with one worker, the key without which it does not start, and no database."""
    found = find("litellm")
    key = f"sk-{secrets.token_hex(16)}"
    config = place.write("litellm.yaml", LITELLM_CONFIG.format(upstream=place.upstream, key=key))
    words = ("--host", "127.0.0.1", "--port", str(place.port), "--num_workers", "1", "--telemetry", "False")
    # Prices of models would be fetched from elsewhere at the start; more than 500 streams at once would wait for a connection.
    limits = {"AIOHTTP_CONNECTOR_LIMIT": "16000", "AIOHTTP_CONNECTOR_LIMIT_PER_HOST": "16000"}
    usual = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR"}
    headers = {"Authorization": f"Bearer {key}"}
    return Command(
        (found, "--config", str(config), *words), headers, {**usual, **limits}, spoken=True, patience=SLOW_START
    )


def portkey(place: Place) -> Command:
    """The gateway of Portkey without its page; where to relay to is said by each request."""
    found = find("portkey")
    headers = {
        "x-portkey-provider": "anthropic",
        "x-portkey-custom-host": f"http://127.0.0.1:{place.upstream}/v1",
        "x-api-key": "bench",
    }
    environment = {"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1"}
    return Command((found, f"--port={place.port}", "--headless"), headers, environment, spoken=True, patience=30.0)


def claude_code_router(place: Place) -> Command:
    """The router of Claude Code with one provider of the caller's own dialect, and its log."""
    found = find("claude-code-router")
    far = {
        "name": "far",
        "api_base_url": f"http://127.0.0.1:{place.upstream}/v1/messages",
        "api_key": "bench",
        "models": ["bench"],
        "transformer": {"use": ["Anthropic"]},
    }
    config = {
        "HOST": "127.0.0.1",
        "PORT": place.port,
        "LOG": True,
        "LOG_LEVEL": "info",
        "NON_INTERACTIVE_MODE": True,
        "Providers": [far],
        "Router": {"default": "far,bench"},
    }
    place.write(".claude-code-router/config.json", json.dumps(config))
    environment = {"HOME": str(place.directory), "SERVICE_PORT": str(place.port)}
    return Command((found, "start"), environment=environment, spoken=True, patience=30.0)


PEERS: dict[str, Callable[[Place], Command]] = {
    "haproxy": haproxy,
    "mitmproxy": mitmproxy,
    "litellm": litellm,
    "portkey": portkey,
    "claude-code-router": claude_code_router,
}

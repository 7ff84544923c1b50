"""Which agent's session a request belongs to: what its headers and body say of themselves.

Pure. Owns the list of names under which agents send the ids of their sessions. What is found here is the caller's word:
good for finding things again, and no proof of anything (CONTRACTS.md, section 1).
"""

import json
import re
from collections.abc import Mapping

import attrs

ID_CAP = 200
"""Characters of an id that are kept: agents use UUIDs, and a header may hold anything."""

_HEADERS = (
    ("claude-code", b"x-claude-code-session-id"),
    ("codex", b"session-id"),
    ("codex", b"session_id"),
    ("codex", b"x-codex-session-id"),
    ("", b"x-session-id"),
    ("opencode", b"x-session-affinity"),
    ("codex", b"thread-id"),
    ("codex", b"conversation_id"),
)
"""Agent and header, the surest first. Codex: ``session-id`` now, ``session_id`` and ``conversation_id`` before."""

_AGENTS = (
    ("claude-code", re.compile(r"\bclaude-(?:cli|code)/", re.IGNORECASE)),
    ("codex", re.compile(r"\bcodex[a-z_-]*/", re.IGNORECASE)),
    ("gemini-cli", re.compile(r"\bgemini-?cli\b", re.IGNORECASE)),
    ("opencode", re.compile(r"\bopencode/", re.IGNORECASE)),
    ("aider", re.compile(r"\baider\b", re.IGNORECASE)),
    ("cline", re.compile(r"\bcline\b", re.IGNORECASE)),
)
"""Agents by their User-Agent (RFC 9110 section 10.1.5)."""

_USER_ID = re.compile(
    r"user_[0-9a-fA-F]*_account_[0-9a-fA-F-]*_session_([0-9a-fA-F-]{36})|.*_session_([0-9a-fA-F-]{36})"
)
_SIMPLE = re.compile(r"[!-~]+")


@attrs.frozen
class Identity:
    """What a request says of the agent that sent it; "" for what it does not say.

    ``agent``: the program (``claude-code``, ``codex``, ...). ``session``: its run. ``agent_id`` and ``parent_agent_id``:
    which of its agents asks, and on whose behalf; both empty for the main one.
    """

    agent: str = ""
    session: str = ""
    agent_id: str = ""
    parent_agent_id: str = ""


def identify(headers: Mapping[bytes, bytes], body: Mapping[str, object]) -> Identity:
    """The identity in ``headers`` (names in lower case, first value of each) and in the parsed ``body`` ({} if none)."""
    user_agent = _text(headers.get(b"user-agent", b""), cap=1000)
    agent = next((name for name, pattern in _AGENTS if pattern.search(user_agent)), "")
    session = ""
    for name, header in _HEADERS:
        session = _text(headers.get(header, b""))
        if session:
            agent = agent or name
            break
    told = _told(body)
    if not session:
        session = _first(told, "session_id", "sessionId", "thread_id") or _of_body(body)
    turn = _object(_text(headers.get(b"x-codex-turn-metadata", b""), cap=8192))
    return Identity(
        agent or ("claude-code" if _is_claude_code(told, body) else ""),
        session or _first(turn, "session_id", "thread_id"),
        _text(headers.get(b"x-claude-code-agent-id", b"")) or _first(told, "agent_id") or _first(turn, "agent_id"),
        _text(headers.get(b"x-claude-code-parent-agent-id", b""))
        or _first(told, "parent_agent_id")
        or _first(turn, "parent_agent_id", "parent_thread_id"),
    )


def _told(body: Mapping[str, object]) -> Mapping[str, object]:
    """What Claude Code (and others after it) keep in ``metadata``: ``user_id`` is a JSON text with the ids, or once was
    ``user_<hash>_account_<uuid>_session_<uuid>``."""
    metadata = body.get("metadata")
    if not isinstance(metadata, Mapping):
        metadata = body.get("client_metadata")
    if not isinstance(metadata, Mapping):
        return {}
    user_id = metadata.get("user_id")
    if not isinstance(user_id, str):
        return metadata
    inner = _object(user_id)
    if inner:
        return {**metadata, **inner}
    match = _USER_ID.fullmatch(user_id[:1000])
    return {**metadata, "session_id": match[1] or match[2]} if match else metadata


def _of_body(body: Mapping[str, object]) -> str:
    """Codex names its cache key after the session; the Code Assist form of Gemini has the id outside the request."""
    return _first(body, "prompt_cache_key", "session_id", "sessionId")


def _is_claude_code(told: Mapping[str, object], body: Mapping[str, object]) -> bool:
    metadata = body.get("metadata")
    user_id = metadata.get("user_id") if isinstance(metadata, Mapping) else None
    return isinstance(user_id, str) and bool(_first(told, "session_id"))


def _first(values: Mapping[str, object], *names: str) -> str:
    for name in names:
        value = values.get(name)
        if isinstance(value, str) and _SIMPLE.fullmatch(value[:ID_CAP]):
            return value[:ID_CAP]
    return ""


def _text(value: bytes, cap: int = ID_CAP) -> str:
    text = value[:cap].decode("latin-1").strip()
    return text if cap != ID_CAP or _SIMPLE.fullmatch(text) else ""


def _object(text: str) -> Mapping[str, object]:
    if not text.startswith("{"):
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}

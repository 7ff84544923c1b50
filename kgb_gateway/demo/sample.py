"""Picks a tool and makes up input for it: just enough JSON Schema that an agent accepts what the demo calls.

Pure. Owns which tools are safe to call; it must never choose one that writes, deletes or runs what a user typed.
"""

import re
from collections.abc import Mapping
from typing import Any

import attrs

MAX_NODES = 150
"""Schemas may refer to themselves, several times over; after this many parts everything is null, well before the
interpreter's recursion limit."""

MAX_ITEMS = 8

_WISH_TOOL = re.compile(r"\b(use|call|try|invoke|run)\b.{0,40}\btools?\b", re.IGNORECASE | re.DOTALL)
_PATH = r"(?:[\w.~-]*/)*[\w-]*\.[A-Za-z]\w{0,5}\b|(?:[\w.~-]*/)+[\w-]+"
_WISH_FILE = re.compile(
    rf"\b(?:read|open|show|view|cat)\b.{{0,40}}?(?:\bfiles?\b|(?<![\w/]){_PATH})", re.IGNORECASE | re.DOTALL
)
_FIND_PATH = re.compile(rf"(?<![\w/@:]){_PATH}")

_READING = re.compile(r"read|view|cat|open", re.IGNORECASE)
_HARMLESS = re.compile(
    r"get|list|search|find|glob|grep|look|fetch|weather|time|date|calc|add|echo|ls|read|view", re.IGNORECASE
)
_SHELL = re.compile(r"bash|shell|exec|terminal|command", re.IGNORECASE)
_HARMFUL = re.compile(
    r"write|edit|delete|remove|create|update|patch|move|kill|send|post|put|set|commit|push|task|agent|todo|plan|ask",
    re.IGNORECASE,
)


@attrs.frozen
class Tool:
    """A tool the request offers: its name and the JSON Schema of its input."""

    name: str
    schema: Mapping[str, Any]


def wishes_tool(said: str) -> bool:
    """Whether the user's words ask for a tool or for a file to be read."""
    return bool(_WISH_TOOL.search(said) or _WISH_FILE.search(said))


def pick_tool(tools: tuple[Tool, ...], said: str, forced: str = "") -> Tool | None:
    """The tool to call: the forced one, the one named by the user, one that reads, one that is harmless, a shell.

    None where every tool may change something; shells are called with ``ls`` alone (see ``sample``).
    """
    if forced:
        return next((tool for tool in tools if tool.name == forced), None)
    safe = [tool for tool in tools if not _HARMFUL.search(tool.name)]
    named = [tool for tool in safe if re.search(rf"\b{re.escape(tool.name)}\b", said, re.IGNORECASE)]
    reading = [tool for tool in safe if _READING.search(tool.name)] if _WISH_FILE.search(said) else []
    harmless = [tool for tool in safe if _HARMLESS.search(tool.name)]
    shells = [tool for tool in safe if _SHELL.search(tool.name)]
    return next(iter(named + reading + harmless + shells), None)


def sample(schema: Mapping[str, Any], said: str = "") -> Any:
    """A small value that ``schema`` accepts; paths come from the user's words, commands are always ``ls``."""
    found = _FIND_PATH.search(said)
    return _Sampler(schema, found.group() if found else "README.md").value(schema)


@attrs.define
class _Sampler:
    root: Mapping[str, Any]
    path: str
    left: int = MAX_NODES

    def value(self, schema: Any, name: str = "") -> Any:
        self.left -= 1
        if not isinstance(schema, Mapping) or self.left < 0:
            return None
        for key in ("const", "default"):
            if key in schema:
                return schema[key]
        for key in ("enum", "examples", "anyOf", "oneOf", "allOf"):
            choices = schema.get(key)
            if isinstance(choices, list) and choices:
                return choices[0] if key in ("enum", "examples") else self.value(choices[0], name)
        if "$ref" in schema:
            return self.value(self.resolve(str(schema["$ref"])), name)
        return self.typed(schema, name)

    def resolve(self, reference: str) -> Any:
        node: Any = self.root
        for part in reference.removeprefix("#/").split("/"):
            node = node.get(part) if isinstance(node, Mapping) else None
        return node

    def typed(self, schema: Mapping[str, Any], name: str) -> Any:
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = next((one for one in kind if one != "null"), "null")
        match kind:
            case "object":
                return self.members(schema)
            case "array":
                least = schema.get("minItems", 0)
                wanted = min(least, MAX_ITEMS) if isinstance(least, int) else 0
                return [self.value(schema.get("items", {}), name) for _ in range(wanted or int(_is_command(name)))]
            case "integer" | "number":
                return schema.get("minimum", 1)
            case "boolean":
                return False
            case "null":
                return None
        return self.word(name)

    def members(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        properties = schema.get("properties")
        required = schema.get("required")
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            return {}
        return {name: self.value(properties.get(name, {}), str(name)) for name in required}

    def word(self, name: str) -> str:
        lowered = name.lower()
        if _is_command(lowered):
            return "ls"
        if "path" in lowered or "file" in lowered:
            return self.path
        if "url" in lowered or "uri" in lowered:
            return "https://example.com/"
        if "city" in lowered or "location" in lowered or "place" in lowered:
            return "Oslo"
        return "*" if "pattern" in lowered or "glob" in lowered else "kgb demo"


def _is_command(name: str) -> bool:
    return name.lower() in ("command", "cmd", "commands", "script")

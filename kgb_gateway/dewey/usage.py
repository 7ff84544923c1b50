"""What a reply has used, in one measure for every dialect: parts that never overlap, so that they can be added up.

Pure. Owns the rules of how each provider counts; knows no price and no store. The provider's own numbers stay verbatim with the
reply (``transcripts.Reply.usage``): what is told here is derived from them and from nothing else.

The rules come from the providers' references and from recorded replies. Anthropic counts input *beside* what was read from or
written to a cache; everybody else counts it *with* that. xAI, and Gemini behind OpenAI's dialect, leave thinking out of the
completion, and their total shows it.
"""

from collections.abc import Callable, Iterable, Mapping

import attrs

from .transcripts.model import Dialect, Json

MOST = 10**12
"""A count above it is no count: it is taken as 0, and sums over any number of replies stay within 64 bits."""

MOST_ITERATIONS = 1000
"""A reply that claims more of them is taken by its top-level numbers."""

MOST_TOOLS = 32
TOOL_NAME = 64
"""How many names of server tools are kept, and how long they may be."""

APART = ("advisor_message", "compaction")
"""Iterations that Anthropic's top-level numbers leave out by their kind."""

SERVED_INSTEAD = "fallback_message"
"""The iteration of the model that answered after another had declined."""


@attrs.frozen
class Usage:
    """What one iteration of one model used, in tokens; most replies are one iteration. No token is in two of the five parts.

    ``uncached``: input neither read from nor written to a cache. ``cache_write_5m``: writes without a named lifetime too.
    ``output``: all of it, ``thinking`` (a part of it) included. ``server_tools``: calls by the provider's name for them, only
    those above 0. ``iteration``: its number within the reply, from 0; ``kind``: the provider's word for it, "" for most.
    ``mode``: "" for the standard price, else what the provider bills otherwise: ``fast``, ``batch``, ``priority``, ``flex``.
    """

    model: str
    uncached: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    output: int = 0
    thinking: int = 0
    server_tools: Mapping[str, int] = attrs.field(factory=dict)
    iteration: int = 0
    kind: str = ""
    mode: str = ""

    @property
    def input(self) -> int:
        """All that the model read, from wherever."""
        return self.uncached + self.cache_read + self.cache_write_5m + self.cache_write_1h

    @property
    def total(self) -> int:
        return self.input + self.output


def normalise(dialect: Dialect, usage: Json, model: str) -> tuple[Usage, ...]:
    """What ``usage`` (a reply's own object, of any shape) says was used: one for each iteration that used anything.

    ``model``: that of the reply, for iterations that name none. () where nothing is told: no usage, or nothing in it that is a
    count. What is no count (negative, no whole number, above ``MOST``) is 0; nothing raises.
    """
    if not isinstance(usage, Mapping):
        return ()
    return tuple(found for found in RULES[dialect](usage, model) if found.total or found.server_tools)


def count(value: Json) -> int:
    """``value`` if it is a count, else 0."""
    return value if type(value) is int and 0 <= value <= MOST else 0


def _first(*values: Json) -> int:
    """The first that is a count above 0."""
    return next((found for found in map(count, values) if found), 0)


def _part(usage: Mapping[str, Json], *names: str) -> Mapping[str, Json]:
    """The first of ``names`` that is an object, or an empty one."""
    for name in names:
        value = usage.get(name)
        if isinstance(value, Mapping):
            return value
    return {}


def _text(value: Json) -> str:
    return value if isinstance(value, str) else ""


def _tools(*found: Iterable[tuple[Json, Json]]) -> Mapping[str, int]:
    tools: dict[str, int] = {}
    for pairs in found:
        for name, value in pairs:
            if isinstance(name, str) and len(name) <= TOOL_NAME and count(value) and len(tools) < MOST_TOOLS:
                tools[name] = count(value)
    return tools


def _cut(whole: int, read: int, written: int) -> tuple[int, int, int]:
    """Input that includes the cache's share, cut into what is left, reads and writes: never more than the whole."""
    read = min(read, whole)
    written = min(written, whole - read)
    return whole - read - written, read, written


# Anthropic.


def _anthropic(usage: Mapping[str, Json], model: str) -> tuple[Usage, ...]:
    whole = attrs.evolve(_message(usage, model), mode=_mode(usage))
    each = _iterations(usage, whole)
    serving = next((one.model for one in each if one.kind == SERVED_INSTEAD), "")
    each = [one for one in each if not _declined(one, serving) or one.output]
    if sum(one.total for one in each) < whole.total or not each:
        return (whole,)
    # What only the top level tells belongs to the iterations that it sums up; the last of them wrote the reply.
    summed = [at for at, one in enumerate(each) if one.kind not in APART and not _declined(one, serving)]
    summed = summed or [len(each) - 1]
    each[summed[-1]] = attrs.evolve(each[summed[-1]], server_tools=whole.server_tools)
    left = max(0, whole.thinking - sum(one.thinking for one in each))
    for at in reversed(summed):
        more = min(left, each[at].output - each[at].thinking)
        each[at] = attrs.evolve(each[at], thinking=each[at].thinking + more)
        left -= more
    return tuple(each)


def _declined(one: Usage, serving: str) -> bool:
    """Whether this model declined, and ``serving`` answered instead. Anthropic bills it only if it had begun to write."""
    return bool(serving) and one.kind == "message" and one.model != serving


def _iterations(usage: Mapping[str, Json], whole: Usage) -> list[Usage]:
    """Each with its own model. Their sum is what is billed: the top level leaves out compactions, advisors, declined hops."""
    listed = usage.get("iterations")
    if not isinstance(listed, list | tuple) or len(listed) > MOST_ITERATIONS:
        return []
    return [
        attrs.evolve(
            _message(one, _text(one.get("model")) or whole.model),
            iteration=number,
            kind=_text(one.get("type")),
            mode=whole.mode,
        )
        for number, one in enumerate(listed)
        if isinstance(one, Mapping)
    ]


def _message(usage: Mapping[str, Json], model: str) -> Usage:
    tiers = _part(usage, "cache_creation")
    short, long = count(tiers.get("ephemeral_5m_input_tokens")), count(tiers.get("ephemeral_1h_input_tokens"))
    # A stream revises the sum of its writes, but not always the tiers it told first: the rest is of the kind known so far.
    rest = max(0, count(usage.get("cache_creation_input_tokens")) - short - long)
    if long and not short:
        long += rest
    else:
        short += rest
    output = count(usage.get("output_tokens"))
    return Usage(
        model,
        uncached=count(usage.get("input_tokens")),
        cache_read=count(usage.get("cache_read_input_tokens")),
        cache_write_5m=short,
        cache_write_1h=long,
        output=output,
        thinking=min(output, count(_part(usage, "output_tokens_details").get("thinking_tokens"))),
        server_tools=_tools(_part(usage, "server_tool_use").items()),
    )


def _mode(usage: Mapping[str, Json]) -> str:
    """Batches are half the price whatever else is said; ``priority`` is a commitment, paid elsewhere at the same prices."""
    if usage.get("service_tier") == "batch":
        return "batch"
    return "fast" if usage.get("speed") == "fast" else ""


# OpenAI.


def _chat(usage: Mapping[str, Json], model: str) -> tuple[Usage, ...]:
    details = _part(usage, "prompt_tokens_details")
    hit = count(usage.get("prompt_cache_hit_tokens"))  # DeepSeek
    read = _first(details.get("cached_tokens"), hit, usage.get("cached_tokens"), usage.get("cache_read_input_tokens"))
    written = _first(details.get("cache_write_tokens"), usage.get("cache_creation_input_tokens"))
    prompt = _first(usage.get("prompt_tokens"), hit + count(usage.get("prompt_cache_miss_tokens")))
    uncached, read, written = _cut(prompt, read, written)
    output = count(usage.get("completion_tokens"))
    own = _part(usage, "completion_tokens_details").get("reasoning_tokens")
    thinking = _first(own, usage.get("reasoning_tokens"))
    beyond = count(usage.get("total_tokens")) - prompt - output
    if beyond > 0:
        output, thinking = output + beyond, thinking or beyond
    elif thinking > output:
        output += thinking
    return (
        Usage(
            model,
            uncached=uncached,
            cache_read=read,
            cache_write_5m=written,
            output=output,
            thinking=min(output, thinking),
            server_tools=_tools(_part(usage, "server_tool_use").items(), _numbers(usage)),
        ),
    )


def _responses(usage: Mapping[str, Json], model: str) -> tuple[Usage, ...]:
    details = _part(usage, "input_tokens_details", "input_token_details")
    read, written = count(details.get("cached_tokens")), count(details.get("cache_write_tokens"))
    uncached, read, written = _cut(count(usage.get("input_tokens")), read, written)
    output = count(usage.get("output_tokens"))
    thinking = count(_part(usage, "output_tokens_details", "output_token_details").get("reasoning_tokens"))
    return (
        Usage(
            model,
            uncached=uncached,
            cache_read=read,
            cache_write_5m=written,
            output=output,
            thinking=min(output, thinking),
            server_tools=_tools(_part(usage, "server_side_tool_usage_details").items(), _numbers(usage)),
        ),
    )


def _numbers(usage: Mapping[str, Json]) -> list[tuple[Json, Json]]:
    """xAI and Perplexity count what their servers did in members named ``num_...``."""
    return [(name, value) for name, value in usage.items() if isinstance(name, str) and name.startswith("num_")]


# Google.


def _gemini(usage: Mapping[str, Json], model: str) -> tuple[Usage, ...]:
    thinking = count(usage.get("thoughtsTokenCount"))
    return _google(
        model,
        prompt=count(usage.get("promptTokenCount")),
        read=count(usage.get("cachedContentTokenCount")),
        tools=count(usage.get("toolUsePromptTokenCount")),
        output=_first(usage.get("candidatesTokenCount"), usage.get("responseTokenCount")),
        thinking=thinking,
    )


def _interactions(usage: Mapping[str, Json], model: str) -> tuple[Usage, ...]:
    return _google(
        model,
        prompt=count(usage.get("total_input_tokens")),
        read=count(usage.get("total_cached_tokens")),
        tools=count(usage.get("total_tool_use_tokens")),
        output=count(usage.get("total_output_tokens")),
        thinking=count(usage.get("total_thought_tokens")),
    )


def _google(model: str, *, prompt: int, read: int, tools: int, output: int, thinking: int) -> tuple[Usage, ...]:
    """The prompt includes what was cached; what tools gave comes beside it, thinking beside the output."""
    uncached, read, _ = _cut(prompt, read, 0)
    return (Usage(model, uncached=uncached + tools, cache_read=read, output=output + thinking, thinking=thinking),)


RULES: Mapping[Dialect, Callable[[Mapping[str, Json], str], tuple[Usage, ...]]] = {
    Dialect.ANTHROPIC_MESSAGES: _anthropic,
    Dialect.OPENAI_CHAT: _chat,
    Dialect.OPENAI_COMPLETIONS: _chat,
    Dialect.OPENAI_RESPONSES: _responses,
    Dialect.GEMINI: _gemini,
    Dialect.GEMINI_INTERACTIONS: _interactions,
}

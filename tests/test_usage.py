"""Usage is cut into parts that never overlap, whoever counted it. Recorded replies stand beside the project."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgb_gateway.dewey.transcripts.model import Dialect
from kgb_gateway.dewey.usage import MOST, MOST_ITERATIONS, MOST_TOOLS, RULES, Usage, normalise

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "streams"
PARTS = ("uncached", "cache_read", "cache_write_5m", "cache_write_1h", "output", "thinking")


def one(dialect: Dialect, usage: object) -> Usage:
    (found,) = normalise(dialect, usage, "m")
    return found


# Recorded replies.


def dialect_of(path: Path) -> Dialect:
    folder, name = path.parent.name, path.name
    if folder.startswith("anthropic"):
        return Dialect.ANTHROPIC_MESSAGES
    if folder == "google":
        return Dialect.GEMINI_INTERACTIONS if name.startswith("interactions_") else Dialect.GEMINI
    if folder == "azure" or name.startswith("responses_"):
        return Dialect.OPENAI_RESPONSES
    return Dialect.OPENAI_COMPLETIONS if name.startswith("completion_") else Dialect.OPENAI_CHAT


def usages_in(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        for item in value:
            yield from usages_in(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in ("usage", "usageMetadata") and isinstance(item, dict):
                yield item
            else:
                yield from usages_in(item)


def parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None  # one recording holds a broken line on purpose


def recorded() -> Iterator[tuple[str, Dialect, dict[str, Any]]]:
    for path in sorted([*FOLDER.rglob("*.json"), *FOLDER.rglob("*.txt")]):
        text = path.read_text(encoding="utf-8")
        lines = [text] if path.suffix == ".json" else re.findall(r"(?m)^(?:data: ?)?(\{.*)$", text)
        found = {json.dumps(usage): usage for line in lines for usage in usages_in(parsed(line))}
        for number, usage in enumerate(found.values()):
            yield f"{path.parent.name}/{path.name}-{number}", dialect_of(path), usage


RECORDED = list(recorded())
with_recorded = pytest.mark.skipif(not RECORDED, reason=f"no recorded replies at {FOLDER}")


def told_total(usage: dict[str, Any]) -> int:
    """All that the provider says was used: its own total, or what Anthropic bills."""
    for key in ("total_tokens", "totalTokenCount"):
        if key in usage:
            return int(usage[key])
    listed = [each for each in usage.get("iterations", ()) if each["type"] in ("advisor_message", "compaction")]
    keys = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    return sum(each.get(key, 0) for each in (usage, *listed) for key in keys)


@with_recorded
@pytest.mark.parametrize(("dialect", "usage"), [row[1:] for row in RECORDED], ids=[row[0] for row in RECORDED])
def test_the_parts_of_a_recorded_usage_are_the_providers_own_total(dialect: Dialect, usage: dict[str, Any]) -> None:
    found = normalise(dialect, usage, "m")
    assert sum(each.total for each in found) == told_total(usage)
    for each in found:
        assert each.total == each.uncached + each.cache_read + each.cache_write_5m + each.cache_write_1h + each.output


@with_recorded
def test_the_recordings_show_every_dialect_and_most_parts() -> None:
    found = [each for _, dialect, usage in RECORDED for each in normalise(dialect, usage, "m")]
    assert {dialect for _, dialect, _ in RECORDED} == set(Dialect)
    assert len(RECORDED) > 100
    for part in set(PARTS) - {"cache_write_1h"}:
        assert any(attrs.asdict(each)[part] for each in found), part


# Anthropic.


def test_anthropic_counts_input_beside_the_cache() -> None:
    usage = {
        "input_tokens": 6,
        "cache_creation_input_tokens": 3337,
        "cache_read_input_tokens": 6289,
        "cache_creation": {"ephemeral_5m_input_tokens": 337, "ephemeral_1h_input_tokens": 3000},
        "output_tokens": 198,
        "output_tokens_details": {"thinking_tokens": 39},
        "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0},
    }
    found = one(Dialect.ANTHROPIC_MESSAGES, usage)
    assert found == Usage("m", 6, 6289, 337, 3000, 198, 39, {"web_search_requests": 2})
    assert found.input == 6 + 6289 + 3337


@pytest.mark.parametrize(
    ("tiers", "short", "long"),
    [
        (None, 100, 0),
        ({}, 100, 0),
        ({"ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 0}, 100, 0),
        ({"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 60}, 0, 100),
        ({"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 60}, 40, 60),
        ({"ephemeral_5m_input_tokens": 80, "ephemeral_1h_input_tokens": 60}, 80, 60),
    ],
)
def test_writes_are_told_by_their_lifetime(tiers: object, short: int, long: int) -> None:
    usage = {"cache_creation_input_tokens": 100, "cache_creation": tiers}
    assert one(Dialect.ANTHROPIC_MESSAGES, usage) == Usage("m", cache_write_5m=short, cache_write_1h=long)


def test_an_advisor_is_counted_beside_the_top_level_by_its_own_model() -> None:
    usage = {
        "input_tokens": 4727,
        "output_tokens": 3391,
        "output_tokens_details": {"thinking_tokens": 3360},
        "server_tool_use": {"web_search_requests": 1},
        "iterations": [
            {"type": "message", "input_tokens": 1051, "output_tokens": 35},
            {"type": "advisor_message", "model": "big", "input_tokens": 2728, "output_tokens": 3880},
            {"type": "message", "input_tokens": 3676, "output_tokens": 3356},
        ],
    }
    assert normalise(Dialect.ANTHROPIC_MESSAGES, usage, "m") == (
        Usage("m", 1051, output=35, thinking=4, iteration=0, kind="message"),
        Usage("big", 2728, output=3880, iteration=1, kind="advisor_message"),
        Usage(
            "m", 3676, output=3356, thinking=3356, server_tools={"web_search_requests": 1}, iteration=2, kind="message"
        ),
    )


def test_a_compaction_is_counted_beside_the_top_level() -> None:
    usage = {
        "input_tokens": 45,
        "output_tokens": 12,
        "iterations": [
            {"type": "compaction", "input_tokens": 180000, "output_tokens": 3500},
            {"type": "message", "input_tokens": 45, "output_tokens": 12},
        ],
    }
    assert [each.total for each in normalise(Dialect.ANTHROPIC_MESSAGES, usage, "m")] == [183500, 57]


def declined(output: int) -> dict[str, object]:
    return {
        "input_tokens": 412,
        "output_tokens": 264,
        "iterations": [
            {"type": "message", "model": "first", "input_tokens": 408, "output_tokens": output},
            {"type": "message", "model": "second", "input_tokens": 0, "output_tokens": 0},
            {"type": "fallback_message", "model": "second", "input_tokens": 412, "output_tokens": 264},
        ],
    }


def test_a_model_that_declined_before_it_wrote_is_not_billed() -> None:
    (found,) = normalise(Dialect.ANTHROPIC_MESSAGES, declined(0), "second")
    assert found == Usage("second", 412, output=264, iteration=2, kind="fallback_message")


def test_a_model_that_declined_while_it_wrote_is_billed() -> None:
    first, second = normalise(Dialect.ANTHROPIC_MESSAGES, declined(7), "second")
    assert (first.model, first.total) == ("first", 415)
    assert (second.model, second.total) == ("second", 676)


@pytest.mark.parametrize(
    "iterations",
    [None, "x", 7, [], [None, 3, "x"], [{"type": "message", "input_tokens": 1}], [{}] * (MOST_ITERATIONS + 1)],
)
def test_iterations_that_tell_less_than_the_top_level_are_not_believed(iterations: object) -> None:
    usage = {"input_tokens": 10, "output_tokens": 5, "iterations": iterations}
    assert one(Dialect.ANTHROPIC_MESSAGES, usage) == Usage("m", 10, output=5)


@pytest.mark.parametrize(
    ("said", "mode"),
    [
        ({"speed": "fast"}, "fast"),
        ({"service_tier": "batch"}, "batch"),
        ({"service_tier": "batch", "speed": "fast"}, "batch"),
        ({"service_tier": "standard", "speed": "standard"}, ""),
        ({"service_tier": ["batch"], "speed": {}}, ""),
    ],
)
def test_what_is_billed_otherwise_is_told(said: dict[str, object], mode: str) -> None:
    whole = {"input_tokens": 1, "output_tokens": 1}
    assert one(Dialect.ANTHROPIC_MESSAGES, {**whole, **said}).mode == mode
    assert one(Dialect.ANTHROPIC_MESSAGES, {**whole, **said, "iterations": [whole]}).mode == mode


# OpenAI and those who speak like it.


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        # OpenAI: the prompt holds what was cached, the completion what was thought.
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "total_tokens": 150,
                "prompt_tokens_details": {"cached_tokens": 80, "cache_write_tokens": 15},
                "completion_tokens_details": {"reasoning_tokens": 40},
            },
            Usage("m", 5, 80, 15, 0, 50, 40),
        ),
        # xAI: thinking comes beside the completion, as the total shows.
        (
            {
                "prompt_tokens": 12,
                "completion_tokens": 2,
                "total_tokens": 334,
                "prompt_tokens_details": {"cached_tokens": 2},
                "completion_tokens_details": {"reasoning_tokens": 320},
                "num_sources_used": 3,
            },
            Usage("m", 10, 2, 0, 0, 322, 320, {"num_sources_used": 3}),
        ),
        # The same without a total: thinking that exceeds the completion is not in it.
        (
            {"prompt_tokens": 12, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 320}},
            Usage("m", 12, output=322, thinking=320),
        ),
        # Gemini in this dialect: only the total tells that it thought.
        ({"prompt_tokens": 9, "completion_tokens": 23, "total_tokens": 217}, Usage("m", 9, output=208, thinking=185)),
        # DeepSeek.
        (
            {"prompt_cache_hit_tokens": 320, "prompt_cache_miss_tokens": 19, "completion_tokens": 92},
            Usage("m", 19, 320, output=92),
        ),
        # Moonshot.
        ({"prompt_tokens": 100, "cached_tokens": 60, "completion_tokens": 1}, Usage("m", 40, 60, output=1)),
        # What cannot be: more cached than there was; a total below its parts.
        ({"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 99}}, Usage("m", 0, 10)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 3}, Usage("m", 10, output=5)),
    ],
)
def test_chat_completions(usage: dict[str, object], expected: Usage) -> None:
    assert one(Dialect.OPENAI_CHAT, usage) == expected
    assert one(Dialect.OPENAI_COMPLETIONS, usage) == expected


def test_responses() -> None:
    usage = {
        "input_tokens": 31073,
        "input_tokens_details": {"cached_tokens": 3712, "cache_write_tokens": 300},
        "output_tokens": 4416,
        "output_tokens_details": {"reasoning_tokens": 3712},
        "total_tokens": 35489,
        "num_server_side_tools_used": 1,
    }
    expected = Usage("m", 27061, 3712, 300, 0, 4416, 3712, {"num_server_side_tools_used": 1})
    assert one(Dialect.OPENAI_RESPONSES, usage) == expected
    assert expected.total == 35489


# Google.


def test_gemini() -> None:
    usage = {
        "promptTokenCount": 100,
        "cachedContentTokenCount": 60,
        "candidatesTokenCount": 20,
        "thoughtsTokenCount": 300,
        "toolUsePromptTokenCount": 7,
        "totalTokenCount": 427,
    }
    assert one(Dialect.GEMINI, usage) == Usage("m", 47, 60, output=320, thinking=300)


def test_interactions() -> None:
    usage = {
        "total_tokens": 1983,
        "total_input_tokens": 22,
        "total_cached_tokens": 2,
        "total_output_tokens": 590,
        "total_tool_use_tokens": 198,
        "total_thought_tokens": 1173,
    }
    found = one(Dialect.GEMINI_INTERACTIONS, usage)
    assert found == Usage("m", 218, 2, output=1763, thinking=1173)
    assert found.total == 1983


# What is no usage.


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("usage", [None, {}, [], "x", 7, {"trafficType": "ON_DEMAND"}, {"input_tokens": 0}])
def test_nothing_told_is_nothing_used(dialect: Dialect, usage: object) -> None:
    assert normalise(dialect, usage, "m") == ()


@pytest.mark.parametrize("value", [-1, True, 3.0, float("nan"), "3", None, [3], {"a": 3}, MOST + 1, 10**400])
def test_what_is_no_count_is_nothing(value: object) -> None:
    usage = {"input_tokens": 3, "output_tokens": value, "cache_read_input_tokens": value, "iterations": value}
    assert one(Dialect.ANTHROPIC_MESSAGES, usage) == Usage("m", 3)


def test_every_dialect_has_its_rule() -> None:
    assert set(RULES) == set(Dialect)


def test_server_tools_are_few_and_short() -> None:
    tools: dict[str, int] = {f"tool{number}": 1 for number in range(100)} | {"x" * 1000: 1}
    found = one(Dialect.ANTHROPIC_MESSAGES, {"server_tool_use": tools})
    assert len(found.server_tools) == MOST_TOOLS
    assert "x" * 1000 not in found.server_tools


NAMES = sorted(
    set(re.findall(r'"((?:[a-z]+_|num_)[a-z0-9_]+|[a-z]+[A-Z]\w+|iterations|speed|type|model)"', Path(normalise.__code__.co_filename).read_text()))
)  # fmt: skip
COUNTS = st.one_of(st.integers(), st.integers(0, 10**6), st.floats(), st.booleans(), st.none(), st.text(max_size=5))
JSON = st.recursive(
    COUNTS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=9), inner, max_size=9)
    ),
    max_leaves=30,
)


def test_the_names_that_the_fuzzer_plays_with_are_there() -> None:
    assert {"cache_creation", "promptTokenCount", "total_thought_tokens", "iterations", "cached_tokens"} <= set(NAMES)


@given(dialect=st.sampled_from(Dialect), usage=JSON)
def test_whatever_is_told_the_parts_are_counts(dialect: Dialect, usage: object) -> None:
    for each in normalise(dialect, usage, "m"):
        values = attrs.asdict(each)
        assert all(type(values[part]) is int and values[part] >= 0 for part in PARTS)
        assert each.thinking <= each.output
        assert all(number > 0 for number in each.server_tools.values())
        assert each.total < 2**53


@given(
    prompt=st.integers(0, 10**6),
    cached=st.integers(0, 10**6),
    written=st.integers(0, 10**6),
    output=st.integers(0, 10**6),
)
def test_cached_tokens_are_never_counted_twice(prompt: int, cached: int, written: int, output: int) -> None:
    details = {"cached_tokens": cached, "cache_write_tokens": written}
    chat = {"prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": details}
    responses = {"input_tokens": prompt, "output_tokens": output, "input_tokens_details": details}
    gemini = {"promptTokenCount": prompt, "candidatesTokenCount": output, "cachedContentTokenCount": cached}
    for dialect, usage in (
        (Dialect.OPENAI_CHAT, chat),
        (Dialect.OPENAI_RESPONSES, responses),
        (Dialect.GEMINI, gemini),
    ):
        assert sum(each.total for each in normalise(dialect, usage, "m")) == prompt + output

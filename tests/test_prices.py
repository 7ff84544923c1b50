"""Costs: looked up by whoever sold it, computed exactly, unknown rather than nothing."""

import datetime as dt
import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kgb_gateway.dewey.prices as prices_module
from kgb_gateway.dewey.price_table import PricesError, Rate, read
from kgb_gateway.dewey.prices import LONGEST_NAME, MOST_REMEMBERED, Prices, spellings
from kgb_gateway.dewey.transcripts.model import Dialect
from kgb_gateway.dewey.usage import Usage, normalise

SNAPSHOT = (Path(prices_module.__file__).parent / "prices.json").read_text(encoding="utf-8")
SHIPPED = Prices.parse(SNAPSHOT)


def seconds(text: str) -> float:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp()


NOW = seconds("2026-11-23T12:00")


def used(model: str, counts: Sequence[int], searches: int = 0, mode: str = "") -> Usage:
    """``counts``: uncached, read, written for 5 minutes, for an hour, output, thinking."""
    uncached, read_, short, long, output, thinking = counts
    tools = {"web_search_requests": searches}
    return Usage(model, uncached, read_, short, long, output, thinking, tools, mode=mode)


def exact(prices: Prices, hint: str, usage: Usage, at: float = NOW) -> Decimal | None:
    cost = prices.cost(hint, usage, at)
    return None if cost is None else cost.exact


# By hand.


def test_a_turn_of_claude() -> None:
    usage = Usage("claude-opus-4-6", 1200, 80000, 3000, 500, 900, 300)
    # $5 input, $0.50 read, $6.25 write, $10 write for an hour, $25 output, each for a million tokens.
    by_hand = (
        1200 * Decimal(5) + 80000 * Decimal("0.5") + 3000 * Decimal("6.25") + 500 * Decimal(10) + 900 * Decimal(25)
    )
    assert by_hand == 6000 + 40000 + 18750 + 5000 + 22500 == 92250
    cost = SHIPPED.cost("anthropic", usage, NOW)
    assert cost is not None
    assert cost.exact == by_hand
    assert cost.micro_usd == 92250
    assert cost.version == SHIPPED.version == json.loads(SNAPSHOT)["version"]


def test_a_search_is_paid_by_the_call() -> None:
    usage = Usage("claude-opus-4-6", 10, server_tools={"web_search_requests": 3, "web_fetch_requests": 5})
    # 10 tokens at $5 for a million; 3 searches at $10 for a thousand; fetching costs nothing but its tokens.
    assert exact(SHIPPED, "", usage) == 10 * 5 + 3 * 10_000


def test_the_dearer_price_is_for_all_of_a_long_prompt() -> None:
    # Gemini 2.5 Pro up to 200,000 tokens of input: $1.25, cached $0.125, output $10; above: $2.50, $0.25, $15.
    short, long = (
        Usage("gemini-2.5-pro", 150_000, 50_000, output=700),
        Usage("gemini-2.5-pro", 150_000, 50_001, output=700),
    )
    assert exact(SHIPPED, "google", short) == Decimal(187500) + 6250 + 7000
    assert exact(SHIPPED, "google", long) == Decimal(375000) + Decimal("12500.25") + 10500


def test_a_price_holds_from_its_day_on() -> None:
    usage = Usage("o3", 1000, output=100)  # $10 and $40 until 2025-06-09, then $2 and $8
    assert exact(SHIPPED, "openai", usage, seconds("2025-06-09T23:59:59")) == 1000 * 10 + 100 * 40
    assert exact(SHIPPED, "openai", usage, seconds("2025-06-10T00:00:00")) == 1000 * 2 + 100 * 8


def test_a_price_holds_between_two_hours() -> None:
    usage = Usage("deepseek-chat", 1000)  # $0.27 from 00:30 to 16:30 UTC, half of it else
    for time, price in (("00:29", 135), ("00:30", 270), ("16:29", 270), ("16:30", 135)):
        assert exact(SHIPPED, "deepseek", usage, seconds(f"2025-03-01T{time}")) == price


def test_batches_and_fast_mode_have_their_own_price() -> None:
    usage = Usage("claude-fable-5-2", 1000, output=100)  # $8 and $40; fast $16 and $80; batch $4 and $20
    assert exact(SHIPPED, "", usage) == 12_000
    assert exact(SHIPPED, "", attrs.evolve(usage, mode="fast")) == 24_000
    assert exact(SHIPPED, "", attrs.evolve(usage, mode="batch")) == 6_000
    assert exact(SHIPPED, "", attrs.evolve(usage, mode="nobody knows")) == 12_000


def test_of_two_prices_for_a_mode_the_first_that_holds_counts() -> None:
    fast = [{"from": "2026-01-01", "input": 5}, {"input": 7, "output": 9}]
    prices = Prices.parse(table({"id": "m", "prices": {"input": 1, "output": 2}, "modes": {"fast": fast}}))
    usage = Usage("m", 1, output=100, mode="fast")
    assert exact(prices, "v", usage, seconds("2025-12-31T00:00")) == 7 + 900
    assert exact(prices, "v", usage, seconds("2026-01-01T00:00")) == 5 + 900


def test_what_xai_billed_itself_is_what_is_computed() -> None:
    """Its replies tell the cost, in ticks of which ten thousand are a millionth of a dollar."""
    told = {
        "prompt_tokens": 12,
        "completion_tokens": 2,
        "total_tokens": 334,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 320},
        "cost_in_usd_ticks": 1641500,
    }
    (usage,) = normalise(Dialect.OPENAI_CHAT, told, "grok-3-mini")
    assert exact(SHIPPED, "api.x.ai", usage) == Decimal(1641500) / 10_000


# Against genai-prices 0.2.3: its calc_price, in millionths of a dollar. Counts: uncached, read, written for 5 minutes, for an
# hour, output, thinking, searches.
# fmt: off
COMPUTED = [
    ("anthropic", "claude-opus-4-6", "2026-11-23T12:00", (1200, 80000, 3000, 500, 900, 300, 0), "92250"),
    ("anthropic", "claude-sonnet-4-5-20250929", "2026-11-23T12:00", (12, 0, 150000, 60000, 900, 0, 0), "1865322"),
    ("anthropic", "claude-sonnet-4-20250514", "2026-11-23T12:00", (12, 150000, 60000, 0, 900, 0, 2), "303536"),
    ("anthropic", "claude-haiku-5-5", "2026-11-23T12:00", (100, 99900, 0, 0, 10, 0, 0), "1014"),
    ("anthropic", "claude-haiku-5-5", "2026-11-23T12:00", (100, 99901, 0, 0, 10, 0, 0), "5070.05"),
    ("anthropic", "claude-fable-5", "2026-11-23T12:00", (408, 0, 0, 0, 1, 0, 0), "4130"),
    ("aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "2026-11-23T12:00", (100, 2000, 300, 40, 50, 0, 0), "3316.5"),
    ("aws", "anthropic.claude-3-5-sonnet-20240620-v1:0", "2026-11-23T12:00", (100, 0, 0, 0, 50, 0, 0), "1050"),
    ("google", "claude-sonnet-4-5@20250929", "2026-11-23T12:00", (100, 2000, 300, 40, 50, 0, 0), "3015"),
    ("google", "gemini-2.5-pro", "2026-11-23T12:00", (150000, 50001, 0, 0, 700, 600, 0), "398000.25"),
    ("google", "gemini-2.5-pro", "2026-11-23T12:00", (150000, 50000, 0, 0, 700, 600, 0), "200750"),
    ("google", "gemini-3-pro-preview", "2026-11-23T12:00", (9, 0, 0, 0, 331, 302, 0), "3990"),
    ("openai", "gpt-5-2025-08-07", "2026-11-23T12:00", (1000, 3072, 0, 0, 463, 64, 0), "6264"),
    ("openai", "gpt-4o", "2024-08-01T12:00", (1000, 0, 0, 0, 10, 0, 0), "2600"),
    ("openai", "o3", "2025-06-09T23:59", (1000, 0, 0, 0, 100, 90, 0), "14000"),
    ("openai", "o3", "2025-06-10T00:00", (1000, 0, 0, 0, 100, 90, 0), "2800"),
    ("openai", "gpt-5.2-20251211", "2026-11-23T12:00", (1000, 0, 0, 0, 100, 90, 0), "3150"),
    ("azure", "gpt-4.1-mini", "2026-11-23T12:00", (1000, 500, 0, 0, 100, 0, 0), "610"),
    ("x-ai", "grok-3-mini-beta", "2026-11-23T12:00", (10, 2, 0, 0, 322, 320, 0), "164.15"),
    ("deepseek", "deepseek-chat", "2025-03-01T00:30", (19, 320, 0, 0, 92, 48, 0), "128.73"),
    ("deepseek", "deepseek-chat", "2025-03-01T16:30", (19, 320, 0, 0, 92, 48, 0), "64.365"),
    ("deepseek", "deepseek-v4-pro", "2026-11-23T03:59", (19, 320, 0, 0, 92, 48, 0), "403.48"),
    ("mistral", "mistral-small-latest", "2026-11-23T12:00", (13, 0, 0, 0, 434, 0, 0), "262.35"),
    ("groq", "llama-3.3-70b-versatile", "2026-11-23T12:00", (1000, 0, 0, 0, 500, 0, 0), "985"),
    ("together", "meta-llama/Llama-3.3-70B-Instruct-Turbo", "2026-11-23T12:00", (1000, 0, 0, 0, 500, 0, 0), "1320"),
    ("openrouter", "anthropic/claude-sonnet-4.5", "2026-11-23T12:00", (1000, 200, 30, 0, 500, 0, 0), "10672.5"),
    ("moonshotai", "kimi-k2-0905-preview", "2026-11-23T12:00", (1000, 200, 0, 0, 500, 0, 0), "1880"),
]
# fmt: on


@pytest.mark.parametrize(("hint", "model", "at", "counts", "expected"), COMPUTED)
def test_genai_prices_computes_the_same(hint: str, model: str, at: str, counts: tuple[int, ...], expected: str) -> None:
    usage = used(model, counts[:6], counts[6])
    assert exact(SHIPPED, hint, usage, seconds(at)) == Decimal(expected)


# Names.


@pytest.mark.parametrize(
    ("hint", "model", "expected"),
    [
        ("", "claude-opus-4-6", "claude-opus-4-6"),
        ("", "CLAUDE-OPUS-4-6 ", "claude-opus-4-6"),
        ("", "claude-opus-4-6[1m]", "claude-opus-4-6"),
        ("", "anthropic/claude-opus-4-6", "claude-opus-4-6"),
        ("api.anthropic.com", "claude-opus-4-6-20991231", "claude-opus-4-6"),
        ("https://api.anthropic.com/v1/messages", "claude-opus-4-6", "claude-opus-4-6"),
        ("proxy.example.com", "claude-opus-4-6", "claude-opus-4-6"),
        ("aws", "us.anthropic.claude-opus-4-6-v1:0", "regional.anthropic.claude-opus-4-6-v1:0"),
        ("", "us.anthropic.claude-opus-4-6-v1:0", "regional.anthropic.claude-opus-4-6-v1:0"),
        ("", "bedrock/us.anthropic.claude-opus-4-6-v1:0", "regional.anthropic.claude-opus-4-6-v1:0"),
        (
            "bedrock-runtime.us-east-1.amazonaws.com",
            "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-opus-4-6-v1:0",
            "regional.anthropic.claude-opus-4-6-v1:0",
        ),
        ("anthropic", "anthropic.claude-opus-4-6-v1:0", "claude-opus-4-6"),
        ("us-east5-aiplatform.googleapis.com", "claude-sonnet-4-5@20250929", "claude-sonnet-4-5"),
        ("", "claude-fable-5@20260701", "claude-fable-5"),
        ("vertex", "publishers/google/models/gemini-2.5-pro", "gemini-2.5-pro"),
        ("generativelanguage.googleapis.com", "models/gemini-2.5-pro", "gemini-2.5-pro"),
        ("", "models/gemini-2.5-pro", "gemini-2.5-pro"),
        ("openai", "gpt-5-2025-08-07", "gpt-5"),
        ("contoso.openai.azure.com", "gpt-5", "gpt-5"),
        ("xai", "grok-3-mini", "grok-3-mini"),
        ("", "openrouter/anthropic/claude-sonnet-4.5", "anthropic/claude-sonnet-4.5"),
    ],
)
def test_a_model_is_found_whatever_is_written_around_its_name(hint: str, model: str, expected: str) -> None:
    found = SHIPPED.find(hint, model)
    assert found is not None
    assert found.id == expected


@pytest.mark.parametrize(
    ("hint", "model"),
    [
        ("", ""),
        ("", "llama-next"),
        ("anthropic", "gpt-5"),
        ("groq", "claude-opus-4-6"),
        ("", "claude-opus-4-6" + "x" * LONGEST_NAME),
        ("", "/"),
        ("", "[1m]"),
        ("", "@"),
    ],
)
def test_a_model_that_is_not_known_has_no_cost(hint: str, model: str) -> None:
    assert SHIPPED.cost(hint, Usage(model, 10, output=10), NOW) is None


def test_a_part_without_a_price_has_no_cost() -> None:
    prices = Prices.parse(table({"id": "a", "prices": {"input": 1}}, {"id": "b", "prices": {}}))
    assert exact(prices, "v", Usage("a", 10)) == 10
    assert exact(prices, "v", Usage("a", 10, output=1)) is None
    assert exact(prices, "v", Usage("b", 10)) is None
    assert exact(prices, "v", Usage("b")) is None


def test_free_models_cost_nothing_and_are_known() -> None:
    assert exact(SHIPPED, "openrouter", Usage("agentica-org/deepcoder-14b-preview:free", 10, output=10)) == 0


def test_spellings_begin_with_the_name_itself() -> None:
    assert next(spellings("a/b[1m]")) == "a/b[1m]"
    assert list(spellings("gpt-5.2-20251211")) == ["gpt-5.2-20251211", "gpt-5.2-2025-12-11", "gpt-5.2"]


def test_no_more_is_remembered_than_was_promised() -> None:
    prices = Prices.parse(table({"id": "a", "prices": {"input": 1}}))
    for number in range(MOST_REMEMBERED + 10):
        prices.find("v", f"m{number}")
    assert len(prices._found) <= MOST_REMEMBERED
    assert prices.find("v", "a") is prices.find("v", "a") is not None


# Arithmetic.


def table(*models: object, **more: object) -> str:
    return json.dumps({"version": "t", "providers": [{"id": "v", "models": list(models), **more}]})


def test_what_has_no_price_of_its_own_costs_what_it_is_a_part_of() -> None:
    prices = Prices.parse(table({"id": "m", "prices": {"input": 2, "output": 10}}))
    assert exact(prices, "v", Usage("m", 1, 2, 4, 8, 16, 15)) == 15 * 2 + 16 * 10


def test_thinking_may_have_its_own_price() -> None:
    prices = Prices.parse(table({"id": "m", "prices": {"input": 2, "output": 10, "thinking": 3}}))
    assert exact(prices, "v", Usage("m", output=16, thinking=15)) == 1 * 10 + 15 * 3


def test_a_write_for_an_hour_is_twice_the_input_of_a_claude() -> None:
    rate = {"base": 3, "above": [[100, 6]]}
    own = {"id": "claude-own", "prices": {"input": 3, "cache_write_1h": 4}}
    prices = Prices.parse(table({"id": "claude-x", "prices": {"input": rate, "cache_write": 3.75}}, own))
    assert exact(prices, "v", Usage("claude-x", cache_write_1h=100)) == 100 * 6
    assert exact(prices, "v", Usage("claude-x", cache_write_1h=101)) == 101 * 12
    assert exact(prices, "v", Usage("claude-own", cache_write_1h=100)) == 100 * 4


def test_a_request_may_have_a_price() -> None:
    prices = Prices.parse(table({"id": "m", "prices": {"input": 1, "requests": 12}}))
    assert exact(prices, "v", Usage("m", 10)) == 10 + 12_000


def test_nothing_drifts() -> None:
    prices = Prices.parse(table({"id": "m", "prices": {"input": 0.1}}))
    costs = [exact(prices, "v", Usage("m", 1)) for _ in range(1000)]
    assert sum(cost for cost in costs if cost is not None) == 100
    cost = prices.cost("v", Usage("m", 15), NOW)
    assert cost is not None
    assert cost.exact == Decimal("1.5")
    assert cost.micro_usd == 2


def test_hours_may_run_over_midnight() -> None:
    night = {"between": ["22:00", "06:00"], "input": 1}
    prices = Prices.parse(table({"id": "m", "prices": [{"input": 2}, night]}))
    for time, price in (("21:59", 2), ("22:00", 1), ("00:00", 1), ("05:59", 1), ("06:00", 2)):
        assert exact(prices, "v", Usage("m", 1), seconds(f"2026-01-01T{time}")) == price


def test_before_the_first_day_the_first_price_holds() -> None:
    prices = Prices.parse(
        table({"id": "m", "prices": [{"from": "2026-01-01", "input": 1}, {"from": "2026-02-01", "input": 2}]})
    )
    assert exact(prices, "v", Usage("m", 1), seconds("2020-01-01T00:00")) == 1
    assert exact(prices, "v", Usage("m", 1), float("nan")) == 1


def test_a_rate_knows_its_steps() -> None:
    rate = Rate(Decimal(1), ((10, Decimal(2)), (20, Decimal(3))))
    assert [rate.at(tokens) for tokens in (0, 10, 11, 20, 21)] == [1, 1, 2, 2, 3]


MODELS = ["claude-opus-4-6", "gpt-5", "gemini-2.5-pro", "deepseek-chat", "sonar", "grok-3-mini", "none"]
COUNT = st.integers(0, 10**12)


@given(
    model=st.sampled_from(MODELS) | st.text(max_size=40),
    hint=st.sampled_from(["", "anthropic", "openai", "perplexity"]) | st.text(max_size=20),
    counts=st.tuples(COUNT, COUNT, COUNT, COUNT),
    output=st.tuples(COUNT, COUNT),
    mode=st.sampled_from(["", "fast", "batch", "flex"]),
    at=st.floats(),
)
def test_no_cost_is_negative_and_none_raises(
    model: str, hint: str, counts: tuple[int, ...], output: tuple[int, int], mode: str, at: float
) -> None:
    usage = used(model, (*counts, max(output), min(output)), counts[0], mode)
    cost = SHIPPED.cost(hint, usage, at)
    assert cost is None or (cost.exact >= 0 and cost.micro_usd >= 0)


# A user's own table.


def test_an_override_adds_and_replaces() -> None:
    own = {
        "version": "ours 1",
        "providers": [
            {
                "id": "anthropic",
                "models": [
                    {"id": "claude-opus-4-6", "prices": {"input": 1, "output": 2}},
                    {"id": "claude-house", "match": {"starts_with": ["claude-house"]}, "prices": {"input": 7}},
                ],
            },
            {"id": "home", "hosts": "https://llm\\.home", "models": [{"id": "m", "prices": {"input": 0.5}}]},
        ],
    }
    prices = Prices.parse(SNAPSHOT, json.dumps(own))
    assert prices.version == f"{SHIPPED.version} + ours 1"
    assert exact(prices, "", Usage("claude-opus-4-6", 10, output=1)) == 12
    assert exact(prices, "anthropic", Usage("claude-house-3", 10)) == 70
    assert exact(prices, "llm.home", Usage("m", 10)) == 5
    assert exact(prices, "home", Usage("m", 10)) == 5
    assert (
        exact(prices, "", Usage("claude-opus-4-5", 10)) == exact(SHIPPED, "", Usage("claude-opus-4-5", 10)) is not None
    )
    anthropic = next(vendor for vendor in prices.table.vendors if vendor.id == "anthropic")
    assert len([model for model in anthropic.models if model.id == "claude-opus-4-6"]) == 1


def test_an_override_without_a_version_is_known_by_its_digest() -> None:
    one, other = (Prices.parse(SNAPSHOT, json.dumps({"providers": [], "source": word})).version for word in "ab")
    assert one != other
    assert one.startswith(f"{SHIPPED.version} + sha256:")


def test_all_faults_of_a_table_are_told_at_once() -> None:
    faulty = {
        "colour": "red",
        "providers": [
            7,
            {"id": "v", "hosts": "(", "fallback": "x", "models": [
                {"id": "a", "prices": {"input": -1, "output": "5", "inptu": 3, "from": "soon"}},
                {"id": "b"},
                {"id": "c", "match": {"like": "c"}, "prices": [{"input": {"base": 1, "above": [[1], [-5, 2]]}}]},
                {"id": "d", "prices": {"input": True, "between": ["1:00", "25:00"]}},
                {"prices": {}},
            ]},
        ],
    }  # fmt: skip
    with pytest.raises(PricesError) as caught:
        Prices.parse(SNAPSHOT, json.dumps(faulty))
    told = str(caught.value)
    for part in (
        "the table: unknown key 'colour'",
        "providers[0] must be an object",
        "providers.v.hosts is no regular expression",
        "providers.v.fallback must be a list",
        "providers.v.models.a.prices.input must be a number from 0 to 1000000",
        "providers.v.models.a.prices.output must be a number",
        "providers.v.models.a.prices: unknown key 'inptu'; known are input, cache_read",
        "providers.v.models.a.prices.from must be a day like 2026-11-23",
        "providers.v.models.b.prices is missing",
        "providers.v.models.c.match: unknown key 'like'",
        "providers.v.models.c.prices.input.above[0]",
        "providers.v.models.c.prices.input.above[1][0]",
        "providers.v.models.d.prices.input must be a number",
        "providers.v.models.d.prices.between must be two times of a day",
        "providers.v.models[4].id must be a text",
    ):
        assert part in told, part


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version": NaN}',
        "[" * 100_000,
        '{"providers": 3}',
        '{"version": ""}',
        '{"providers": [{}]}',
    ],
)
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(PricesError):
        read(text)


@pytest.mark.parametrize("number", ["1" * 5000, "1e999999999", "-0.1", "1e99999999999999999999"])
def test_numbers_that_are_no_prices_are_refused(number: str) -> None:
    with pytest.raises(PricesError):
        read(f'{{"providers": [{{"id": "v", "models": [{{"id": "m", "prices": {{"input": {number}}}}}]}}]}}')


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda inner: st.one_of(
    st.lists(inner, max_size=3),
    st.dictionaries(st.sampled_from(["providers", "id", "models", "prices", "match", "regex", "all", "input", "modes",
                                     "above", "base", "from", "between", "hosts", "names", "fallback"]), inner, max_size=5),
), max_leaves=25))  # fmt: skip
def test_any_table_is_read_or_refused(value: object) -> None:
    try:
        found = read(json.dumps(value))
    except PricesError as error:
        assert str(error)
    else:
        assert found.version


def test_the_documentation_shows_an_override_that_works() -> None:
    page = (Path(__file__).parents[1] / "docs" / "prices.rst").read_text(encoding="utf-8")
    block = page.partition(".. code-block:: json\n\n")[2].partition("\n\n``match``")[0]
    prices = Prices.parse(SNAPSHOT, block)
    assert prices.version == f"{SHIPPED.version} + our contract, 2026-11"
    assert exact(prices, "llm.home.example", Usage("Qwen3-Coder", 10, output=10)) == 0
    assert exact(prices, "", Usage("claude-opus-4-6", 10, cache_write_1h=10), seconds("2026-12-01T00:00")) == 40 + 80


# What is shipped.


def test_the_snapshot_says_what_it_is() -> None:
    told = json.loads(SNAPSHOT)
    assert told["version"].startswith("genai-prices ")
    assert "MIT" in told["license"]
    assert told["source"].startswith("https://")


def test_the_snapshot_knows_whom_agents_talk_to() -> None:
    vendors = {vendor.id: len(vendor.models) for vendor in SHIPPED.table.vendors}
    assert {"anthropic", "openai", "google", "x-ai", "deepseek", "mistral", "groq", "together", "azure", "aws"} <= set(
        vendors
    )
    assert min(vendors.values()) >= 5
    assert sum(vendors.values()) > 1000

"""Takes the price table that is shipped from the package genai-prices (MIT), which need be installed for this only.

``python -m tests.prices_snapshot`` writes ``kgb_gateway/dewey/prices.json``; ``--print`` shows it instead.
"""

import argparse
import datetime as dt
import importlib
import importlib.metadata
import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parents[1] / "kgb_gateway" / "dewey" / "prices.json"

VENDORS = (
    "anthropic", "openai", "google", "x-ai", "deepseek", "mistral", "groq", "together", "azure", "aws", "openrouter",
    "cerebras", "cohere", "fireworks", "github-copilot", "meta", "minimax", "moonshotai", "perplexity", "zai", "zhipuai",
)  # fmt: skip
"""Whose prices are kept: who speaks one of the dialects and is met by coding agents."""

KEYS = {
    "input_mtok": "input",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "output_mtok": "output",
    "output_reasoning_mtok": "thinking",
    "web_searches_kcount": "web_searches",
    "requests_kcount": "requests",
}
"""genai-prices' names of prices, and ours. Prices by modality, by hour and by page are left out: usage does not tell them."""

FREE = ":free"
"""What OpenRouter calls models that cost nothing; genai-prices has no prices for them, which elsewhere means not known."""

MODES = ("processing", "speed", "service_tier")
"""What a price may depend on beside the model, and is told by one word."""


def number(value: Decimal) -> int | float:
    """``value`` as JSON writes it, exactly."""
    if value == value.to_integral_value():
        return int(value)
    assert Decimal(repr(float(value))) == value, value
    return float(value)


def rate(value: Any) -> Any:
    if isinstance(value, Decimal):
        return number(value)
    return {"base": number(value.base), "above": [[tier.start, number(tier.price)] for tier in value.tiers]}


def rates(prices: Any) -> dict[str, Any]:
    found = prices.__dict__
    return {ours: rate(found[theirs]) for theirs, ours in KEYS.items() if found.get(theirs) is not None}


def dated(prices: Any, constraint: Any) -> dict[str, Any]:
    if constraint is None:
        return rates(prices)
    if hasattr(constraint, "start_date"):
        return {"from": constraint.start_date.isoformat(), **rates(prices)}
    for at in (constraint.start_time, constraint.end_time):
        assert at.utcoffset() in (None, dt.timedelta()), at
    return {"between": [f"{constraint.start_time:%H:%M}", f"{constraint.end_time:%H:%M}"], **rates(prices)}


def clause(match: Any) -> dict[str, Any]:
    """A condition on a name: one of the texts under any of its keys is met. ``all`` holds conditions that must all be met."""
    ((kind, value),) = match.__dict__.items()
    if kind == "and_":
        return {"all": [clause(part) for part in value]}
    if kind != "or_":
        return {kind: [value if kind == "regex" else value.lower()]}
    found: dict[str, Any] = {}
    for part in value:
        for name, values in clause(part).items():
            assert name != "all" or name not in found
            found[name] = values if name == "all" else list(dict.fromkeys([*found.get(name, []), *values]))
    return found


def model(info: Any) -> dict[str, Any]:
    prices = info.prices if isinstance(info.prices, list) else None
    standard = [dated(one.prices, one.constraint) for one in prices] if prices else [rates(info.prices)]
    modes: dict[str, list[dict[str, Any]]] = {}
    for variant in info.price_variants or ():
        ((key, word),) = variant.when.items()
        found = dated(variant.prices, variant.constraint)
        if key in MODES and found.keys() & KEYS.values():
            modes.setdefault(word, []).append(found)
    if standard == [{}] and info.id.endswith(FREE):
        standard = [{"input": 0, "output": 0}]
    told: dict[str, Any] = {"id": info.id, "match": clause(info.match), "prices": standard}
    if len(standard) == 1:
        told["prices"] = standard[0]
    return {**told, "modes": modes} if modes else told


def vendor(provider: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"id": provider.id, "hosts": provider.api_pattern}
    if provider.provider_match is not None:
        told["names"] = clause(provider.provider_match)
    if provider.model_match is not None:
        told["guess"] = clause(provider.model_match)
    fallback = [name for name in provider.fallback_model_providers or () if name in VENDORS]
    if fallback:
        told["fallback"] = fallback
    told["models"] = [model(info) for info in provider.models]
    return told


def snapshot(date: str) -> dict[str, Any]:
    providers = importlib.import_module("genai_prices.data").providers
    found = importlib.metadata.distribution("genai-prices")
    terms = next(file for file in found.files or () if file.name == "LICENSE").read_text(encoding="utf-8")
    kept = {provider.id: vendor(provider) for provider in providers if provider.id in VENDORS}
    assert set(kept) == set(VENDORS), set(VENDORS) - set(kept)
    return {
        "version": f"genai-prices {found.version} of {date}",
        "source": "https://github.com/pydantic/genai-prices",
        "license": " ".join(terms.split()),
        "providers": [kept[name] for name in VENDORS],
    }


def text(date: str) -> str:
    """One line for each model, so that a new snapshot shows what has changed."""
    table = snapshot(date)
    lines = ["{", *(f"{json.dumps(key)}: {json.dumps(table[key])}," for key in table if key != "providers")]
    lines.append('"providers": [')
    for at, one in enumerate(table["providers"]):
        head = json.dumps({key: value for key, value in one.items() if key != "models"}, separators=(",", ":"))
        lines.append(f'{head[:-1]},"models":[')
        lines.append(",\n".join(json.dumps(found, separators=(",", ":")) for found in one["models"]))
        lines.append("]}," if at + 1 < len(table["providers"]) else "]}")
    return "\n".join([*lines, "]}", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    today = dt.datetime.now(dt.UTC).date().isoformat()
    parser.add_argument("--date", default=today, help="the day the table is of (default: today)")
    parser.add_argument("--print", action="store_true", help="write to standard output")
    options = parser.parse_args()
    if options.print:
        sys.stdout.write(text(options.date))
    else:
        TARGET.write_text(text(options.date), encoding="utf-8")


if __name__ == "__main__":
    main()

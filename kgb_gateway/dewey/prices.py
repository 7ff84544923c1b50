"""What a reply cost: prices for what was used, looked up by who sold it, which model, and when.

Pure: the texts of tables come in (``prices.json`` lies beside this module). Owns how the names of models and providers are
understood, and the arithmetic: exact, in decimals. What is not in the table has no cost, which is not the same as costing nothing.
"""

import re
from collections.abc import Callable, Iterator
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Protocol

import attrs

from .price_table import Model, Rates, Table, Vendor, over, read
from .usage import Usage

LONGEST_NAME = 256
"""Names longer than that are no models; callers can send any."""

MOST_REMEMBERED = 4096
"""How many pairs of provider and model are remembered, since callers choose them."""

PER_CALL = {"web_search_requests": "web_searches", "num_search_queries": "web_searches"}
"""Server tools that are paid by the call, and the price for it."""

COMPACT_DATE = re.compile(r"-(20\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")
DATE = re.compile(r"[-@](?:20\d{6}|20\d\d-\d\d-\d\d)$")
BEDROCK = re.compile(r"(?:[a-z-]+\.)?anthropic\.(claude.*?)(?:-v\d+(?::\d+)*)?$")


@attrs.frozen
class Cost:
    """``exact``: millionths of a US dollar; ``version``: of the table it was computed with."""

    exact: Decimal
    version: str

    @property
    def micro_usd(self) -> int:
        """To the nearest millionth of a dollar, for stores that hold whole numbers."""
        return int(self.exact.to_integral_value(ROUND_HALF_EVEN))


class Pricing(Protocol):
    """Whatever tells costs."""

    def cost(self, provider_hint: str, usage: Usage, at: float) -> Cost | None:
        """See ``Prices.cost``."""


@attrs.frozen
class Later:
    """Prices that are read when something is to be priced: to read the table takes longer than most commands."""

    load: Callable[[], "Prices"]
    _loaded: "list[Prices]" = attrs.field(factory=list, init=False, repr=False, eq=False)

    def cost(self, provider_hint: str, usage: Usage, at: float) -> Cost | None:
        """See ``Prices.cost``."""
        if not self._loaded:
            self._loaded.append(self.load())
        return self._loaded[0].cost(provider_hint, usage, at)


@attrs.frozen
class Prices:
    """Tables, ready to be asked."""

    table: Table
    _found: dict[tuple[str, str], Model | None] = attrs.field(factory=dict, init=False, repr=False, eq=False)

    @classmethod
    def parse(cls, text: str, override_text: str = "") -> "Prices":
        """``text``: a table (``prices.json``); ``override_text``: a user's, of the same shape, whose models go before.

        ``PricesError`` tells all that is wrong with the one or the other.
        """
        table = read(text)
        return cls(over(table, read(override_text)) if override_text else table)

    @property
    def version(self) -> str:
        return self.table.version

    def cost(self, provider_hint: str, usage: Usage, at: float) -> Cost | None:
        """What ``usage`` cost, None where its model, or a part of it, has no known price.

        ``provider_hint``: who was asked, a name or a host (``aws``, ``api.openai.com``); where the table does not know it, the
        name of the model tells. ``at``: when, seconds since the epoch.
        """
        model = self.find(provider_hint, usage.model)
        if model is None:
            return None
        amount = _amount(model.rates(at, usage.mode), usage)
        return None if amount is None else Cost(amount, self.table.version)

    def find(self, provider_hint: str, model: str) -> Model | None:
        """The table's entry for ``model`` as ``provider_hint`` sells it."""
        key = (provider_hint, model)
        try:
            return self._found[key]
        except KeyError:
            if len(self._found) >= MOST_REMEMBERED:
                self._found.clear()
        found = self._found[key] = self._find(provider_hint.strip().lower(), model.strip().lower())
        return found

    def _find(self, hint: str, model: str) -> Model | None:
        if not 0 < len(model) <= LONGEST_NAME:
            return None
        vendor = self._vendor(hint) if hint else None
        if vendor is None and BEDROCK.match(model.rpartition("/")[2]):
            vendor = self._vendor("aws")  # nobody else calls them so
        if vendor is not None:
            return next((found for name in spellings(model) if (found := self._sold_by(vendor, name))), None)
        for name in spellings(model):
            before, _, rest = name.partition("/")
            vendor = self._vendor(before) if rest else None
            if vendor is not None and (found := self._sold_by(vendor, rest)):
                return found
            for vendor in self.table.vendors:
                if vendor.guess is not None and vendor.guess(name) and (found := self._sold_by(vendor, name)):
                    return found
        return None

    def _sold_by(self, vendor: Vendor, name: str) -> Model | None:
        by_id = {seller.id: seller for seller in self.table.vendors} if vendor.fallback else {}
        sellers = [vendor, *(by_id[other] for other in vendor.fallback if other in by_id)]
        return next((model for seller in sellers for model in seller.models if model.match(name)), None)

    def _vendor(self, hint: str) -> Vendor | None:
        """Who is meant by a name or by a host."""
        vendors = self.table.vendors
        url = hint if "://" in hint else f"https://{hint}"
        for vendor in vendors:
            if vendor.id == hint or (vendor.hosts is not None and vendor.hosts.match(url)):
                return vendor
        return next((vendor for vendor in vendors if vendor.names is not None and vendor.names(hint)), None)


def spellings(model: str) -> Iterator[str]:
    """How the same model, in lower case, may be called in a table, most exact first.

    Agents and clouds write more around a name than providers do: ``models/gemini-2.5-pro``, ``claude-opus-4-8[1m]``,
    ``us.anthropic.claude-sonnet-4-5-20250929-v1:0``, an ARN, ``claude-sonnet-4-5@20250929``, a date of its own.
    """
    bare = model.partition("[")[0]
    last = bare.rpartition("/")[2]
    bedrock = BEDROCK.match(last)
    plain = bedrock[1] if bedrock else last
    each = [
        model,
        bare,
        last,
        plain,
        COMPACT_DATE.sub(r"-\1-\2-\3", plain),
        DATE.sub("", plain),
        plain.partition("@")[0],
    ]
    yield from (name for name in dict.fromkeys(each) if name)


def _amount(rates: Rates, usage: Usage) -> Decimal | None:
    """Dollars for a million tokens are millionths of a dollar for one. What the table has no own price for costs what it is
    a part of: cached input what input costs, thinking what output costs.
    """
    if not rates:
        return None
    input_rate, output_rate = rates.get("input"), rates.get("output")
    thinking = usage.thinking if "thinking" in rates else 0
    write = rates.get("cache_write", input_rate)
    parts = (
        (usage.uncached, input_rate),
        (usage.cache_read, rates.get("cache_read", input_rate)),
        (usage.cache_write_5m, write),
        (usage.cache_write_1h, rates.get("cache_write_1h", write)),
        (usage.output - thinking, output_rate),
        (thinking, rates.get("thinking")),
    )
    amount, tokens = Decimal(0), usage.input
    for used, rate in parts:
        if not used:
            continue
        if rate is None:
            return None
        amount += rate.at(tokens) * used
    calls = [(number, rates.get(PER_CALL.get(name, ""))) for name, number in usage.server_tools.items()]
    for number, rate in (*calls, (1, rates.get("requests"))):
        if rate is not None:
            amount += rate.at(tokens) * number * 1000
    return amount

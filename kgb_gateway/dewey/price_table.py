"""A table of prices as a file tells it: read, checked as a whole, and two of them laid over each other.

Pure: texts come in, nothing is opened. Owns the shape of ``prices.json`` and of a user's override, and their faults; who asks for
which model, and what a reply costs, is not its matter (``prices.py``).
"""

import datetime as dt
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal

import attrs

DAY = 86400

PRICE_KEYS = ("input", "cache_read", "cache_write", "cache_write_1h", "output", "thinking", "web_searches", "requests")
"""What has a price: US dollars for a million tokens; of ``web_searches`` and ``requests`` for a thousand."""

MATCH_KEYS = ("equals", "starts_with", "ends_with", "contains", "regex", "all")

DEAREST = Decimal(10**6)
MOST_TOKENS = Decimal(10**12)


class PricesError(ValueError):
    """A table that cannot be used; the message tells every fault, a line each, with the names of its keys."""


@attrs.frozen
class Rate:
    """A price. ``above``: what all of it costs once the input has more than so many tokens, ascending."""

    base: Decimal
    above: tuple[tuple[int, Decimal], ...] = ()

    def at(self, tokens: int) -> Decimal:
        """The price where the input has ``tokens``."""
        for start, price in reversed(self.above):
            if tokens > start:
                return price
        return self.base

    def times(self, factor: int) -> "Rate":
        return Rate(self.base * factor, tuple((start, price * factor) for start, price in self.above))


Rates = Mapping[str, Rate]


@attrs.frozen
class Dated:
    """Prices with the time they are for: from a day on (days since the epoch, UTC), or daily between two seconds of a day."""

    rates: Rates
    start: int | None = None
    between: tuple[int, int] | None = None

    def active(self, at: float) -> bool:
        """``at``: seconds since the epoch."""
        if self.start is not None and not at // DAY >= self.start:
            return False
        if self.between is None:
            return True
        begin, end = self.between
        second = at % DAY
        return begin <= second < end if begin <= end else second >= begin or second < end


Match = Callable[[str], bool]
"""Whether a name, in lower case, is meant."""


@attrs.frozen
class Model:
    """``prices``: the last one active counts, without one the first; () is a model whose price is not by tokens.

    ``modes``: what a mode (``batch``, ``fast``) changes of them; of what several say about a price the first active counts.
    """

    id: str
    match: Match
    prices: tuple[Dated, ...]
    modes: Mapping[str, tuple[Dated, ...]] = attrs.field(factory=dict)

    def rates(self, at: float, mode: str = "") -> Rates:
        """What it costs at ``at``, seconds since the epoch; {} where nothing is known."""
        active = next((one for one in reversed(self.prices) if one.active(at)), None)
        rates = (active or self.prices[0]).rates if self.prices else {}
        if not mode or mode not in self.modes:
            return rates
        changed: dict[str, Rate] = {}
        for one in self.modes[mode]:
            if one.active(at):
                changed = {**one.rates, **changed}
        return {**rates, **changed}


@attrs.frozen
class Vendor:
    """Who sells models. ``hosts``: its base URLs, ``names``: its own names; ``guess``: names of models that point to it;
    ``fallback``: whose models it sells too.
    """

    id: str
    hosts: re.Pattern[str] | None = None
    names: Match | None = None
    guess: Match | None = None
    fallback: tuple[str, ...] = ()
    models: tuple[Model, ...] = ()


@attrs.frozen
class Table:
    """``version``: what a cost says it was computed with."""

    version: str
    vendors: tuple[Vendor, ...]


def read(text: str) -> Table:
    """The table that ``text``, a JSON object, tells. ``PricesError`` with all that is wrong."""
    try:
        value = json.loads(text, parse_float=Decimal, parse_int=Decimal, parse_constant=_no_constant)
    except (ValueError, RecursionError, ArithmeticError) as error:
        raise PricesError(f"no JSON: {error}") from error
    reader = Reader()
    table = reader.table(value)
    if reader.faults:
        raise PricesError("\n".join(reader.faults))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return table if table.version else attrs.evolve(table, version=f"sha256:{digest}")


def over(base: Table, other: Table) -> Table:
    """``base`` with what ``other`` says instead: its models come first, and replace those with their ids."""
    own = {vendor.id: vendor for vendor in other.vendors}
    vendors = [_merged(vendor, own.pop(vendor.id, None)) for vendor in base.vendors]
    return Table(f"{base.version} + {other.version}", (*own.values(), *vendors))


def _merged(vendor: Vendor, own: Vendor | None) -> Vendor:
    if own is None:
        return vendor
    ids = {model.id for model in own.models}
    return Vendor(
        vendor.id,
        own.hosts or vendor.hosts,
        own.names or vendor.names,
        own.guess or vendor.guess,
        own.fallback or vendor.fallback,
        (*own.models, *(model for model in vendor.models if model.id not in ids)),
    )


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no number")


@attrs.define
class Reader:
    """Reads a table and collects its faults; what has one is read as if it were not there."""

    faults: list[str] = attrs.field(factory=list)

    def table(self, value: object) -> Table:
        found = self._object("the table", value, ("version", "source", "license", "providers"))
        listed = self._list("providers", found.get("providers", []))
        version = self._text("version", found["version"]) if "version" in found else ""
        return Table(version, tuple(self._vendor(f"providers[{at}]", one) for at, one in enumerate(listed)))

    def _vendor(self, where: str, value: object) -> Vendor:
        found = self._object(where, value, ("id", "hosts", "names", "guess", "fallback", "models"))
        name = self._text(f"{where}.id", found.get("id"))
        where = f"providers.{name}" if name else where
        hosts = self._pattern(f"{where}.hosts", found["hosts"]) if "hosts" in found else None
        models = self._list(f"{where}.models", found.get("models", []))
        fallback = self._list(f"{where}.fallback", found.get("fallback", []))
        return Vendor(
            name.lower(),
            hosts,
            self.match(f"{where}.names", found["names"]) if "names" in found else None,
            self.match(f"{where}.guess", found["guess"]) if "guess" in found else None,
            tuple(self._text(f"{where}.fallback", one) for one in fallback),
            tuple(self._model(f"{where}.models[{at}]", one) for at, one in enumerate(models)),
        )

    def _model(self, where: str, value: object) -> Model:
        found = self._object(where, value, ("id", "match", "prices", "modes"))
        name = self._text(f"{where}.id", found.get("id"))
        where = f"{where.rpartition('[')[0]}.{name}" if name else where
        if "prices" not in found:
            self.faults.append(f"{where}.prices is missing")
        modes = self._object(f"{where}.modes", found.get("modes", {}))
        return Model(
            name,
            self.match(f"{where}.match", found.get("match", name)),
            self._prices(f"{where}.prices", found.get("prices", []), claude="claude" in name.lower()),
            {
                mode: self._prices(f"{where}.modes.{mode}", one, claude="claude" in name.lower())
                for mode, one in modes.items()
            },
        )

    def _prices(self, where: str, value: object, *, claude: bool) -> tuple[Dated, ...]:
        """``claude``: a write for an hour is twice the input where nothing else is said, as Anthropic says everywhere."""
        if not isinstance(value, list):
            value = [value]
        found = [self._dated(where if len(value) == 1 else f"{where}[{at}]", one) for at, one in enumerate(value)]
        if claude:
            for at, one in enumerate(found):
                if "input" in one.rates and "cache_write_1h" not in one.rates:
                    found[at] = attrs.evolve(one, rates={**one.rates, "cache_write_1h": one.rates["input"].times(2)})
        return tuple(one for one in found if one.rates)

    def _dated(self, where: str, value: object) -> Dated:
        found = self._object(where, value, (*PRICE_KEYS, "from", "between"))
        rates = {key: self._rate(f"{where}.{key}", found[key]) for key in PRICE_KEYS if key in found}
        start = self._day(f"{where}.from", found["from"]) if "from" in found else None
        return Dated(rates, start, self._between(f"{where}.between", found["between"]) if "between" in found else None)

    def _rate(self, where: str, value: object) -> Rate:
        if not isinstance(value, Mapping):
            return Rate(self._number(where, value, DEAREST))
        found = self._object(where, value, ("base", "above"))
        above = []
        for at, pair in enumerate(self._list(f"{where}.above", found.get("above", []))):
            start, price = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
            tokens = self._number(f"{where}.above[{at}][0]", start, MOST_TOKENS)
            above.append((int(tokens), self._number(f"{where}.above[{at}][1]", price, DEAREST)))
        return Rate(self._number(f"{where}.base", found.get("base"), DEAREST), tuple(sorted(above)))

    def match(self, where: str, value: object) -> Match:
        """A condition on a name: a text it equals, or an object, one of whose values must fit: ``{"starts_with": ["gpt-"]}``."""
        if isinstance(value, str):
            value = {"equals": value}
        found = self._object(where, value, MATCH_KEYS)
        tests = [test for key, one in found.items() if key in MATCH_KEYS for test in self._tests(where, key, one)]
        return tests[0] if len(tests) == 1 else lambda name: any(test(name) for test in tests)

    def _tests(self, where: str, key: str, value: object) -> Iterator[Match]:
        where = f"{where}.{key}"
        if key == "all":
            parts = [self.match(f"{where}[{at}]", one) for at, one in enumerate(self._list(where, value))]
            yield lambda name: bool(parts) and all(part(name) for part in parts)
            return
        values = value if isinstance(value, list) else [value]
        if key == "regex":
            patterns = [found for one in values if (found := self._pattern(where, one)) is not None]
            yield lambda name: any(pattern.search(name) for pattern in patterns)
            return
        texts = tuple(self._text(where, one).lower() for one in values)
        if key == "equals":
            yield frozenset(texts).__contains__
        elif key == "contains":
            yield lambda name: any(text in name for text in texts)
        else:
            yield lambda name: name.startswith(texts) if key == "starts_with" else name.endswith(texts)

    # What a value may be.

    def _object(self, where: str, value: object, known: Sequence[str] = ()) -> Mapping[str, object]:
        if not isinstance(value, dict):
            self.faults.append(f"{where} must be an object")
            return {}
        for key in value:
            if known and key not in known:
                self.faults.append(f"{where}: unknown key {key!r}; known are {', '.join(known)}")
        return value

    def _list(self, where: str, value: object) -> list[object]:
        if isinstance(value, list):
            return value
        self.faults.append(f"{where} must be a list")
        return []

    def _text(self, where: str, value: object) -> str:
        if isinstance(value, str) and value:
            return value
        self.faults.append(f"{where} must be a text, not empty")
        return ""

    def _number(self, where: str, value: object, most: Decimal) -> Decimal:
        if isinstance(value, Decimal) and value.is_finite() and 0 <= value <= most:
            return value
        self.faults.append(f"{where} must be a number from 0 to {most:f}")
        return Decimal(0)

    def _pattern(self, where: str, value: object) -> re.Pattern[str] | None:
        try:
            return re.compile(self._text(where, value))
        except (re.error, RecursionError, OverflowError) as error:
            self.faults.append(f"{where} is no regular expression: {error}")
            return None

    def _day(self, where: str, value: object) -> int | None:
        try:
            return dt.date.fromisoformat(self._text(where, value)).toordinal() - EPOCH
        except ValueError:
            self.faults.append(f"{where} must be a day like 2026-11-23")
            return None

    def _between(self, where: str, value: object) -> tuple[int, int] | None:
        times = value if isinstance(value, list) and len(value) == 2 else []
        found = [re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)", one) for one in times if isinstance(one, str)]
        seconds = [int(one[1]) * 3600 + int(one[2]) * 60 for one in found if one is not None]
        if len(seconds) == 2:
            return seconds[0], seconds[1]
        self.faults.append(f'{where} must be two times of a day, UTC, like ["16:30", "00:30"]')
        return None


EPOCH = dt.date(1970, 1, 1).toordinal()

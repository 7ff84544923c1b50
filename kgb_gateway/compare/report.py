"""The comparison in words or as JSON. It prints nothing; whoever prints it masks the secrets."""

import io
from collections.abc import Sequence
from typing import Any, TextIO

from kgb_gateway.compare.judge import flow
from kgb_gateway.compare.run import Comparison
from kgb_gateway.compare.wire import Answer


def tolerant(stream: TextIO) -> None:
    """Let ``stream`` escape the characters its encoding lacks: what servers send must not stop a report."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def text(comparison: Comparison) -> str:
    """One comparison: a line for the request, one for each aspect, one for each further note."""
    lines = [f"{comparison.request.name}  {'agrees' if comparison.agrees else 'DIFFERS'}"]
    for aspect in comparison.aspects:
        first, *rest = aspect.notes or ("",)
        lines.append(f"  {aspect.name:<8} {aspect.verdict:<8} {first}".rstrip())
        lines += [f"  {'':<17} {note}" for note in rest]
    return "\n".join(lines)


def summary(comparisons: Sequence[Comparison]) -> str:
    """The last words: how many agree, and what would make the comparison worth more."""
    agreed = sum(comparison.agrees for comparison in comparisons)
    lines = [f"{agreed} of {len(comparisons)} requests agree."]
    refused = sum(comparison.directs[0].status in (401, 403) for comparison in comparisons)
    if refused:
        lines.append(
            f"{refused} were refused by the server itself (401, 403): compare real answers with "
            "--key-env ANTHROPIC_API_KEY or --header 'x-api-key: $NAME'."
        )
    return "\n".join(lines)


def document(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """All of it for machines. Times in seconds, medians where a request was asked several times."""
    return {
        "agrees": all(comparison.agrees for comparison in comparisons),
        "requests": [
            {
                "name": one.request.name,
                "method": one.request.method,
                "target": one.request.target,
                "agrees": one.agrees,
                "aspects": {
                    aspect.name: {"verdict": str(aspect.verdict), "notes": list(aspect.notes)} for aspect in one.aspects
                },
                "direct": _side(one.directs),
                "via": _side(one.vias),
            }
            for one in comparisons
        ],
    }


def _side(answers: Sequence[Answer]) -> dict[str, Any]:
    flowed = flow(answers)
    return {
        "answers": len(answers),
        "status": [one.status for one in answers],
        "bytes": [len(one.body) for one in answers],
        "complete": all(one.complete for one in answers),
        "framing": answers[0].framing,
        "arrivals": flowed.portions,
        "first_byte": flowed.first_byte,
        "spread": flowed.spread,
        "median_gap": flowed.gap,
        "connect": answers[0].connected,
    }

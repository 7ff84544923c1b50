"""Markdown: its fences close, and prose cannot leave its quotation."""

import re

from hypothesis import example, given, settings

from kgb_gateway.dewey.document import Conversation, Turn
from kgb_gateway.dewey.export.markdown import fence, inline, prose
from tests.documents import CLAUDE, TEXTS, any_conversations, conversation, text, user
from tests.test_export_streams import export


def outside(page: str) -> list[str]:
    """The lines outside all fences, after CommonMark's rules for fences; a fence that stays open is a fault."""
    lines, ticks = [], ""
    for line in page.split("\n"):
        found = re.match(r" {0,3}(`{3,})([^`]*)$", line)
        if ticks:
            if found and len(found[1]) >= len(ticks) and not found[2].strip():
                ticks = ""
        elif found:
            ticks = found[1]
        else:
            lines.append(line)
    assert not ticks
    return lines


def test_a_conversation_in_markdown() -> None:
    page = export("markdown", conversation()).decode()
    lines = outside(page)
    assert [line for line in lines if line.startswith("#")] == [
        "# A dot",
        "## 1 2026-05-28 20:26:40 claude-sonnet-4-5 in 12.3k (cached 11.9k) out 456 \\$0.0123 2.1 s",
        "### user",
        "### assistant",
        "## 2 2026-05-28 20:26:50 claude-sonnet-4-5 in 12.3k (cached 11.9k) out \\~456 \\~\\$2.50 1 min 15 s",
        "### user",
        "### assistant",
    ]
    for line in ("> What is in this picture?", "> A dot.", "> There are", "**Call** Bash t1", "*image: image/png, 70 B*",
                 "- **caller\\_left**", "- **gap: 100 bytes of the response are missing**", "**\\[cut off here\\]**"):  # fmt: skip
        assert line in lines
    assert "```\nfile 0\n" in page
    assert "<details><summary>Thinking</summary>\n\n```text\nLet me see.\nA dot.\n```\n\n</details>" in page


def test_a_fence_is_longer_than_any_run_inside() -> None:
    assert fence("a\n````\nb", "text") == "`````text\na\n````\nb\n`````"


def test_prose_stays_markdown() -> None:
    assert prose("Use `x`:\n\n```py\n1 < 2\n```\nSee [this](https://x).") == (
        "> Use `x`:\n>\n> ```py\n> 1 < 2\n> ```\n> See [this](https://x)."
    )


def test_what_would_do_more_than_be_read_is_fenced() -> None:
    for active in (
        "<script>",
        "a <!-- b",
        "![x](https://evil/?leak)",
        "[x](javascript:1)",
        "[x]: data:1",
        "[x]( javascript:1)",
    ):
        assert prose(active) == f"```text\n{active}\n```"


def test_a_hostile_row_of_spaces_costs_nothing() -> None:
    """Backtracking over it would take years."""
    assert prose("](" + " " * 1_000_000 + "x").startswith("```")
    assert prose("]" + " " * 1_000_000 + "x").startswith(">")


def test_names_mean_nothing() -> None:
    assert inline("a*b_[c](d)\n<e>`f`|") == "a\\*b\\_\\[c\\](d) \\<e\\>\\`f\\`\\|"


@settings(max_examples=60)
@given(any_conversations())
@example(conversation([Turn("x", dialect=CLAUDE, added=(user(text("```")), user(text("# x\n<details>"))))]))
def test_nothing_leaves_its_place(of: Conversation) -> None:
    page = export("markdown", of).decode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e]", page)
    lines = outside(page)
    allowed = re.compile(r"|#{1,3} .*|> ?.*|>|- .*|\*.*\*|\*\*(Call|Result)\*\*.*|</?details>.*")
    assert [line for line in lines if not allowed.fullmatch(line)] == []
    bare = [re.sub(r"<details><summary>[^<]*</summary>|</details>", "", line) for line in lines]
    assert not [line for line in bare if re.search(r"(?<!\\)<[A-Za-z/!?]|(?<!\\)!(?<!\\)\[", line)]
    assert lines.count("</details>") == sum(line.startswith("<details>") for line in lines)


@given(TEXTS)
def test_fences_close_around_anything(said: str) -> None:
    assert outside(fence(said)) == []

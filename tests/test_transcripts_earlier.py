"""Prompts that begin like an earlier one: the same is read as without it, and the same objects come again."""

import copy
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kgb_gateway.dewey.transcripts import anthropic, openai_responses
from kgb_gateway.dewey.transcripts.earlier import KEPT, LARGEST, Earlier
from kgb_gateway.dewey.transcripts.model import Dialect

A = Dialect.ANTHROPIC_MESSAGES


def body(*texts: Any, **more: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "messages": [{"role": "user", "content": text} if isinstance(text, str) else text for text in texts],
        **more,
    }


def read(earlier: Earlier, value: dict[str, Any], size: int = 100) -> Any:
    return earlier.prompt(A, anthropic.read_prompt, value, size)


def test_what_was_said_before_is_the_same_object() -> None:
    earlier = Earlier()
    first = read(earlier, body("a", "b", "c"))
    second = read(earlier, body("a", "b", "c", "d", "e", max_tokens=5))
    assert second == anthropic.read_prompt(body("a", "b", "c", "d", "e", max_tokens=5))
    assert all(ours is theirs for ours, theirs in zip(first.messages, second.messages, strict=False))


texts = st.lists(
    st.sampled_from(["a", "b", {"role": "user", "content": [{"type": "text", "text": "c"}]}, None, 5]), max_size=6
)


@given(st.lists(texts, max_size=8))
def test_every_prompt_is_read_as_it_would_be_alone(prompts: list[list[Any]]) -> None:
    earlier = Earlier()
    for said in prompts:
        value = body(*said, system="s", odd=1)
        before = copy.deepcopy(value)
        assert read(earlier, value) == anthropic.read_prompt(before)
        assert value == before


def test_true_is_not_one() -> None:
    """Python calls 1, 1.0 and True equal; JSON does not."""
    earlier = Earlier()
    for value in ("1", "true", "1.0"):
        block = f'{{"type": "text", "text": "a", "x": {value}}}'
        told = json.loads(f'{{"messages": [{{"role": "user", "content": [{block}]}}, {{}}]}}')
        found = read(earlier, told).messages[0].blocks[0].value
        assert json.dumps(found["x"]) == value


def test_what_is_kept_has_bounds() -> None:
    earlier = Earlier()
    first = read(earlier, body("a", "b"))
    for number in range(KEPT):
        read(earlier, body(f"x{number}", "b"))
    assert read(earlier, body("a", "b")).messages[0] is not first.messages[0]
    large = read(earlier, body("large", "b"), LARGEST + 1)
    assert read(earlier, body("large", "b")).messages[0] is not large.messages[0]


def test_other_dialects_are_read_each_for_itself() -> None:
    earlier, value = Earlier(), {"input": "a", "messages": [{}, {}]}
    for _ in range(2):
        read_as = earlier.prompt(Dialect.OPENAI_RESPONSES, openai_responses.read_prompt, value, 10)
        assert read_as == openai_responses.read_prompt(value)

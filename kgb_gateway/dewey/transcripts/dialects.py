"""Which module reads which dialect. Owns the table and nothing else."""

from collections.abc import Callable

import attrs

from . import (
    anthropic,
    gemini,
    gemini_interactions,
    openai_chat,
    openai_completions,
    openai_responses,
    responses_stream,
)
from .assembling import Assembler
from .model import Dialect, Json, Prompt, Reply


@attrs.frozen
class Reader:
    """How a dialect is read."""

    prompt: Callable[[Json], Prompt]
    reply: Callable[[Json], Reply]
    assembler: Callable[[], Assembler]


READERS = {
    Dialect.ANTHROPIC_MESSAGES: Reader(anthropic.read_prompt, anthropic.read_reply, anthropic.Assembler),
    Dialect.OPENAI_CHAT: Reader(openai_chat.read_prompt, openai_chat.read_reply, openai_chat.Assembler),
    Dialect.OPENAI_COMPLETIONS: Reader(
        openai_completions.read_prompt, openai_completions.read_reply, openai_completions.Assembler
    ),
    Dialect.OPENAI_RESPONSES: Reader(
        openai_responses.read_prompt, openai_responses.read_reply, responses_stream.Assembler
    ),
    Dialect.GEMINI: Reader(gemini.read_prompt, gemini.read_reply, gemini.Assembler),
    Dialect.GEMINI_INTERACTIONS: Reader(
        gemini_interactions.read_prompt, gemini_interactions.read_reply, gemini_interactions.Assembler
    ),
}

"""HTML: one file that holds everything, for any browser, without a script and without a request to anywhere.

Owns the page. Every recorded text is escaped, and its control characters and marks of direction are made visible; the page's own policy
(CSP) forbids all but its one style sheet and the images inside it, should something have slipped through.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from html import escape
from typing import BinaryIO

import attrs

from kgb_gateway.dewey.document import Conversation, Instructions, Turn, Viewer, look
from kgb_gateway.dewey.media import Media, media
from kgb_gateway.dewey.show import Style, head, marks
from kgb_gateway.dewey.texts import json_text, one_line, things, visible
from kgb_gateway.dewey.transcripts.model import Block, Dialect, Kind, Message, View

_CSS = """
:root{color-scheme:light dark;--back:#fff;--text:#1b1b1b;--dim:#666;--line:#ddd;--box:#f5f5f5;--user:#0a6b2d;
--reply:#0b4fa8;--tool:#8a5a00;--warn:#b00020}
@media(prefers-color-scheme:dark){:root{--back:#161616;--text:#e4e4e4;--dim:#999;--line:#3a3a3a;--box:#222;--user:#7bd88f;
--reply:#7fb4ff;--tool:#e0b060;--warn:#ff7b88}}
body{margin:0 auto;max-width:60rem;padding:1rem;background:var(--back);color:var(--text);font:1rem/1.5 system-ui,sans-serif}
pre,p,h1,h2,h3,summary{unicode-bidi:plaintext;white-space:pre-wrap;overflow-wrap:anywhere}
pre{margin:.3rem 0;padding:.6rem;background:var(--box);border-radius:.3rem;font:.85rem/1.4 ui-monospace,monospace}
pre.say{background:none;padding:0;font:inherit}
h2{font-size:1rem;border-top:1px solid var(--line);padding-top:.8rem;color:var(--dim)}
h3{font-size:.9rem;margin:.8rem 0 .2rem}
.user h3{color:var(--user)}.assistant h3,.model h3{color:var(--reply)}
summary{cursor:pointer;color:var(--tool)}.think summary,.facts{color:var(--dim)}.mark{color:var(--warn)}
img{max-width:100%;max-height:30rem}
"""
_HASH = base64.b64encode(hashlib.sha256(_CSS.encode()).digest()).decode("ascii")
_POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; base-uri 'none'; form-action 'none'"
_FOOT = "</main>\n</body>\n</html>\n"

_SHOWN = frozenset(("image/png", "image/jpeg", "image/gif", "image/webp"))
"""Images that are pixels and nothing else: SVG may hold more."""

_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_ROLES = frozenset(("user", "assistant", "model"))


def write(
    view: Viewer,
    conversations: Iterable[Conversation],
    out: BinaryIO,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write one page with all conversations to ``out``. It is whole once this returns."""
    page, written, begun = _Page(view), 0, False
    for conversation in conversations:
        if not begun:
            out.write(_head(conversation.title or conversation.id).encode())
            begun = True
        _put(out, page.title(conversation))
        before: Instructions | None = None
        for number, turn in enumerate(conversation.turns, 1):
            _put(out, page.turn(number, turn, before))
            before = turn.instructions
            written += 1
            if progress is not None:
                progress(written)
        out.write(b"</article>\n")
    if not begun:
        out.write(_head("No conversation").encode())
    out.write(_FOOT.encode())


def _put(out: BinaryIO, parts: Iterable[str]) -> None:
    out.writelines(part.encode("utf-8") + b"\n" for part in parts)


def _head(title: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="referrer" content="no-referrer">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_line(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
    )


def _text(text: str) -> str:
    """``text`` as it may stand in an element or a quoted attribute."""
    return escape(visible(text.replace("\r\n", "\n")))


def _line(text: str, width: int = 200) -> str:
    return escape(one_line(text, width))


def _folded(kind: str, title: str, text: str, more: str = "") -> str:
    """``title``: escaped already, as is ``more``."""
    body = f"<pre>{_text(text)}</pre>" if text else ""
    return f'<details class="{kind}"><summary>{title}</summary>{body}{more}</details>'


def _medium(medium: Media) -> str:
    said = f"<p>[{_line(str(medium))}]</p>"
    kind = medium.type.lower()
    if kind in _SHOWN and _BASE64.fullmatch(medium.base64):
        return f'<img alt="{_line(str(medium))}" src="data:{kind};base64,{medium.base64}">{said}'
    return said


@attrs.frozen
class _Page:
    view: Viewer

    def title(self, of: Conversation) -> Iterator[str]:
        yield f"<article>\n<h1>{_line(of.title) or f'Conversation {_line(of.id)}'}</h1>"
        facts = [of.kind, of.agent, of.project, f"session {of.session}" if of.session else "", of.id]
        yield f'<p class="facts">{_line(" · ".join(fact for fact in facts if fact), 400)}</p>'

    def turn(self, number: int, turn: Turn, before: Instructions | None) -> Iterator[str]:
        yield f"<section>\n<h2>{_line(head(number, turn, Style()))}</h2>"
        for mark in (*marks(turn), *turn.notes):
            yield f'<p class="mark">{_line(mark, 400)}</p>'
        if before != turn.instructions and (turn.system or turn.tools):
            parts = [self._view(turn.dialect, block).text for block in turn.system]
            parts += [json_text(tool, indent=2) for tool in turn.tools]
            yield _folded("facts", f"System prompt, {things(len(turn.tools), 'tool')}", "\n\n".join(parts))
        for message in (*turn.added, *turn.replies):
            yield from self._message(turn.dialect, message)
        if turn.partial:
            yield '<p class="mark">[cut off here]</p>'
        if turn.error is not None:
            error = turn.error if isinstance(turn.error, str) else json_text(turn.error, indent=2)
            yield f'<p class="mark">Error</p><pre>{_text(error)}</pre>'
        yield "</section>"

    def _message(self, dialect: Dialect | None, message: Message) -> Iterator[str]:
        kind = message.role if message.role in _ROLES else "other"
        yield f'<div class="{kind}"><h3>{_line(message.role, 40) or "?"}</h3>'
        for block in message.blocks:
            yield from self._block(dialect, block)
        yield "</div>"

    def _block(self, dialect: Dialect | None, block: Block) -> Iterator[str]:
        seen = self._view(dialect, block)
        named = " ".join(part for part in (_line(seen.name, 80), _line(seen.id, 80)) if part)
        if seen.kind is Kind.THINKING:
            yield _folded("think", "Thinking", seen.text)
        elif seen.kind in (Kind.TEXT, Kind.REFUSAL):
            yield f'<pre class="say">{_text(seen.text)}</pre>'
        elif seen.kind is Kind.TOOL_CALL:
            yield f'<p class="facts">Call {named}</p><pre>{_text(seen.text)}</pre>'
        elif seen.kind is Kind.TOOL_RESULT:
            yield _folded("result", f"Result {named}", seen.text, "".join(map(_medium, media(block.value))))
        elif found := list(media(block.value)):
            yield from map(_medium, found)
        else:
            yield f"<pre>{_text(seen.text or json_text(block.value, indent=2))}</pre>"

    def _view(self, dialect: Dialect | None, block: Block) -> View:
        return look(self.view, dialect, block)

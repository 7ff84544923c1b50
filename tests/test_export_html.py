"""The page: whole, balanced, and inert whatever it holds."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import attrs
from hypothesis import given, settings

from kgb_gateway.dewey.document import Conversation, Turn
from kgb_gateway.dewey.transcripts.model import Block, Kind
from tests.documents import CLAUDE, PNG, any_conversations, assistant, conversation, image, text, thinking, turns, user
from tests.test_export_streams import export

VOID = {"meta", "img"}
TAGS = {
    "html", "head", "meta", "title", "style", "body", "main", "article", "section", "div", "h1", "h2", "h3", "p", "pre", "details",
    "summary", "img",
}  # fmt: skip
ATTRIBUTES = {"lang", "charset", "http-equiv", "content", "name", "class", "alt", "src"}


class Page(HTMLParser):
    """Checks that elements are balanced and known, and keeps the text."""

    def __init__(self, page: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text: list[str] = []
        self.sources: list[str] = []
        self.feed(page.decode("utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        assert {name for name, _ in attrs} <= ATTRIBUTES
        self.sources += [value or "" for name, value in attrs if name == "src"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    def handle_pi(self, data: str) -> None:
        raise AssertionError(data)

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(data)


def test_a_page_says_what_was_said() -> None:
    page = Page(export("html", conversation()))
    said = "".join(page.text)
    for part in ("A dot", "What is in this picture?", "Let me see.\nA dot.", "Bash t1", '{"command": "ls"}', "file 39", "[cut off here]",
                 "gap: 100 bytes of the response are missing", "caller_left", "You are careful."):  # fmt: skip
        assert part in said
    assert page.sources == [f"data:image/png;base64,{PNG}"]


def test_thinking_and_results_are_folded() -> None:
    page = export("html", conversation()).decode()
    assert '<details class="think"><summary>Thinking</summary><pre>Let me see.' in page
    assert '<details class="result"><summary>Result t1</summary><pre>file 0' in page


def test_the_policy_allows_the_style_sheet_and_nothing_else() -> None:
    page = export("html", conversation()).decode()
    (style,) = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:;" in page
    assert "prefers-color-scheme:dark" in style
    assert "style=" not in page
    assert "url(" not in style


def test_markup_in_what_was_said_is_text() -> None:
    hostile = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[2J\u202e\x00"
    turn = attrs.evolve(turns()[0], model=hostile, notes=(hostile,), added=(user(text(hostile), thinking(hostile)),))
    page = Page(export("html", attrs.evolve(conversation([turn]), title=hostile)))
    assert "".join(page.text).count("<script>alert(1)</script>") >= 4
    assert "^[[2J<U+202E>^@" in "".join(page.text)


def test_only_pixels_are_embedded() -> None:
    svg = image("PHN2Zy8+", "image/svg+xml")
    broken = image('"><script>', "image/png")
    turn = Turn("x", dialect=CLAUDE, added=(user(svg, broken),))
    page = Page(export("html", conversation([turn])))
    assert page.sources == []
    assert "[image/svg+xml, 6 B]" in "".join(page.text)


def test_what_nobody_knows_is_shown_as_json() -> None:
    turn = Turn(
        "x", dialect=CLAUDE, replies=(assistant(Block(Kind.OTHER, {"type": "novelty", "n": 1})),), error={"type": "e"}
    )
    said = "".join(Page(export("html", conversation([turn]))).text)
    assert '"type": "novelty"' in said
    assert '"type": "e"' in said


@settings(max_examples=60)
@given(any_conversations())
def test_nothing_breaks_the_page(of: Conversation) -> None:
    out = export("html", of)
    page = Page(out)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", out.decode())
    assert all(
        re.fullmatch(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2}", source) for source in page.sources
    )

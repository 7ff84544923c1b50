"""Request targets: kept to the byte, or refused; never repaired."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiedler_proxy.target import Target, TargetError, parse_target, path_of

VISIBLE = "".join(map(chr, range(0x21, 0x7F)))

KEPT = [
    "/",
    "/v1/messages?beta=true",
    "/files/a%2Fb%3A%2e%2E",
    "//evil.example/path",
    "/a//b///",
    "/../../etc/./passwd",
    "/lone?",
    "/two??&&==",
    "/%zz%",
    "/models/m:streamGenerateContent?alt=sse",
    '/back\\slash|pipe^hat`tick{brace}"quote<angle>',
    "/http://other.example/",
    "/;params=1;x",
    "/?/",
]

REFUSED = [
    "",
    "v1/messages",
    "?q",
    "*",
    "host.example:443",
    "ftp://host/x",
    "http:/one-slash",
    "http://",
    "http:///path",
    "http://user@host/",
    "http://user:password@host/",
    "/a b",
    "/a#fragment",
    "/#",
    "/a\tb",
    "/a\x00",
    "/a\x7f",
    "/caf\xe9",
    "/\udcff",
    "http://host/#x",
    "/a\r\nX: 1",
]


class TestOriginForm:
    @pytest.mark.parametrize("raw", KEPT)
    @pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "MKCALENDAR"])
    def test_targets_are_kept_as_written(self, raw: str, method: str) -> None:
        assert parse_target(method, raw) == Target(raw)

    @pytest.mark.parametrize("raw", REFUSED)
    def test_what_no_two_parties_read_alike_is_refused(self, raw: str) -> None:
        with pytest.raises(TargetError, match=r"."):
            parse_target("GET", raw)

    def test_the_message_does_not_quote_the_target(self) -> None:
        for raw in ("/x#s3cret", "s3cret", "http://s3cret@h/"):
            with pytest.raises(TargetError) as caught:
                parse_target("GET", raw)
            assert "s3cret" not in str(caught.value)

    @given(st.text(VISIBLE.replace("#", "")))
    def test_every_visible_origin_form_is_kept(self, rest: str) -> None:
        assert parse_target("GET", "/" + rest) == Target("/" + rest)

    @given(st.text(), st.sampled_from(["GET", "OPTIONS"]))
    def test_any_text_is_kept_or_refused(self, raw: str, method: str) -> None:
        try:
            target = parse_target(method, raw)
        except TargetError:
            return
        assert raw.endswith(target.sent.removeprefix("/")) or target.sent == "*"
        assert target.sent.startswith("/") or (target.sent == "*" and method == "OPTIONS")
        assert all("\x21" <= c <= "\x7e" and c != "#" for c in target.sent)


class TestOptions:
    """RFC 9112 section 3.2.4."""

    def test_the_asterisk_belongs_to_options(self) -> None:
        assert parse_target("OPTIONS", "*") == Target("*")

    def test_an_absolute_form_without_path_is_the_asterisk_for_options(self) -> None:
        assert parse_target("OPTIONS", "http://host:81") == Target("*", "host:81")
        assert parse_target("OPTIONS", "http://host:81/") == Target("/", "host:81")


class TestAbsoluteForm:
    """RFC 9112 section 3.2.2."""

    @pytest.mark.parametrize(
        ("raw", "target"),
        [
            ("http://host/a%2F?b=1", Target("/a%2F?b=1", "host")),
            ("HTTPS://Host:8443//x", Target("//x", "Host:8443")),
            ("http://host", Target("/", "host")),
            ("http://host?q=1", Target("/?q=1", "host")),
            ("http://host?", Target("/?", "host")),
            ("http://[::1]:80/x", Target("/x", "[::1]:80")),
            ("http://host//other/x", Target("//other/x", "host")),
        ],
    )
    def test_the_authority_is_told_apart_and_the_rest_kept(self, raw: str, target: Target) -> None:
        assert parse_target("GET", raw) == target


@pytest.mark.parametrize(
    ("target", "path"),
    [("/a?key=s3cret", "/a"), ("/a", "/a"), ("/a?", "/a"), ("/?x?y", "/"), ("*", "*"), ("/a%3Fb?c", "/a%3Fb")],
)
def test_the_path_has_no_query(target: str, path: str) -> None:
    assert path_of(target) == path

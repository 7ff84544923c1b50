"""Upstreams: what a base URL means, and which texts are none."""

import pytest

from fiedler_proxy.upstream import PoolLimits, Timeouts, Upstream, parse_upstream


class TestParse:
    @pytest.mark.parametrize(
        ("text", "scheme", "host", "port", "base"),
        [
            ("https://api.anthropic.com", "https", "api.anthropic.com", 443, ""),
            ("https://api.anthropic.com/", "https", "api.anthropic.com", 443, ""),
            ("  http://10.0.0.1:8081  ", "http", "10.0.0.1", 8081, ""),
            ("http://host/anthropic-proxy//", "http", "host", 80, "/anthropic-proxy"),
            ("https://host:8443/a%2Fb/c", "https", "host", 8443, "/a%2Fb/c"),
            ("http://[::1]:9/x", "http", "::1", 9, "/x"),
            ("HTTPS://Host.Example", "https", "host.example", 443, ""),
            ("https://host/a:b/~c/@d", "https", "host", 443, "/a:b/~c/@d"),
        ],
    )
    def test_base_urls(self, text: str, scheme: str, host: str, port: int, base: str) -> None:
        upstream = parse_upstream(text)
        assert (upstream.scheme, upstream.host, upstream.port, upstream.base_path) == (scheme, host, port, base)
        assert upstream.unix == ""
        assert upstream.tls is (scheme == "https")

    @pytest.mark.parametrize(
        ("text", "path", "base"),
        [
            ("unix:/run/fiedler.sock", "/run/fiedler.sock", ""),
            ("http+unix://%2Frun%2Ffiedler.sock", "/run/fiedler.sock", ""),
            ("http+unix://%2Frun%2Ffiedler.sock/base/", "/run/fiedler.sock", "/base"),
        ],
    )
    def test_unix_sockets(self, text: str, path: str, base: str) -> None:
        upstream = parse_upstream(text)
        assert (upstream.unix, upstream.base_path, upstream.tls) == (path, base, False)
        assert upstream.authority == "localhost"

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("", "not an http"),
            ("api.anthropic.com", "not an http"),
            ("ftp://host", "not an http"),
            ("https://", "not an http"),
            ("//host", "not an http"),
            ("https://host:0", "port"),
            ("https://host:70000", "port|URL"),
            ("https://host:port", "URL"),
            ("https://host/?q=1", "query"),
            ("https://host/?", "query"),
            ("https://host/#f", "query or fragment"),
            ("https://host//x", "empty segment"),
            ("https://host/a b", "character"),
            ("https://host/caf\xe9", "character"),
            ("https://m\xfcnchen.example", "URL"),
            ("unix:relative.sock", "absolute"),
            ("unix:", "absolute"),
            ("http+unix://run/x", "absolute"),
        ],
    )
    def test_faults_are_named(self, text: str, why: str) -> None:
        with pytest.raises(ValueError, match=why):
            parse_upstream(text)

    def test_a_credential_in_the_url_is_refused_and_not_repeated(self) -> None:
        with pytest.raises(ValueError, match="user information") as caught:
            parse_upstream("https://user:s3cret@host/")
        assert "s3cret" not in str(caught.value)

    def test_what_stands_beside_the_url_is_kept(self) -> None:
        timeouts, limits = Timeouts(connect=1), PoolLimits(connections=2)
        upstream = parse_upstream(
            "https://h", "named", ca_file="/ca.pem", server_name="s", timeouts=timeouts, limits=limits
        )
        assert upstream == Upstream(
            "named", "https", "h", 443, ca_file="/ca.pem", server_name="s", timeouts=timeouts, limits=limits
        )


class TestFacts:
    @pytest.mark.parametrize(
        ("text", "authority", "url", "where"),
        [
            ("https://h:443", "h", "https://h", "h:443"),
            ("https://h:80", "h:80", "https://h:80", "h:80"),
            ("http://[::1]/b", "[::1]", "http://[::1]/b", "::1:80"),
            ("unix:/s", "localhost", "unix:/s", "/s"),
            ("http+unix://%2Fs/b", "localhost", "unix:/s /b", "/s"),
        ],
    )
    def test_names_for_the_wire_and_for_people(self, text: str, authority: str, url: str, where: str) -> None:
        upstream = parse_upstream(text)
        assert (upstream.authority, upstream.url, upstream.where) == (authority, url, where)

    @pytest.mark.parametrize(
        ("base", "sent", "wire"),
        [("", "/a?b", "/a?b"), ("/base", "/a", "/base/a"), ("/base", "//a", "/base//a"), ("/base", "*", "*")],
    )
    def test_the_target_on_the_wire(self, base: str, sent: str, wire: str) -> None:
        assert parse_upstream(f"https://h{base}").target(sent) == wire

    def test_models_may_think_for_ten_minutes(self) -> None:
        timeouts = Timeouts()
        assert timeouts.first_byte >= 600
        assert timeouts.idle >= 600

    def test_an_upstream_can_name_a_pool(self) -> None:
        assert {parse_upstream("https://h"): 1}[parse_upstream("https://h/")] == 1

"""Errors: which dialect a caller speaks, and what it is told in it."""

import json

import pytest

from fiedler_proxy.errors import Answer, Dialect, ExchangeError, Fault, SettingsError, dialect_of, render

HEADER_CASES = [
    (("x-goog-api-key",), Dialect.GEMINI),
    (("anthropic-version",), Dialect.ANTHROPIC),
    (("anthropic-beta",), Dialect.ANTHROPIC),
    (("openai-organization",), Dialect.OPENAI),
    (("openai-project",), Dialect.OPENAI),
    (("openai-beta",), Dialect.OPENAI),
    (("x-goog-api-key", "anthropic-version"), Dialect.GEMINI),
    (("anthropic-version", "openai-beta"), Dialect.ANTHROPIC),
]

PATH_CASES = [
    ("/v1/messages", Dialect.ANTHROPIC),
    ("/v1/messages/count_tokens", Dialect.ANTHROPIC),
    ("/anthropic-proxy/v1/messages", Dialect.ANTHROPIC),
    ("/model/anthropic.claude/invoke-with-response-stream", Dialect.ANTHROPIC),
    ("/v1/projects/p/locations/l/publishers/anthropic/models/m:streamRawPredict", Dialect.ANTHROPIC),
    ("/v1/projects/p/locations/l/publishers/anthropic/models/m:rawPredict", Dialect.ANTHROPIC),
    ("/v1/projects/p/models/count-tokens:rawPredict", Dialect.ANTHROPIC),
    ("/v1/chat/completions", Dialect.OPENAI),
    ("/v1/responses", Dialect.OPENAI),
    ("/v1/responses/resp_1", Dialect.OPENAI),
    ("/v1/embeddings", Dialect.OPENAI),
    ("/openai/v1/files", Dialect.OPENAI),
    ("/together/chat/completions", Dialect.OPENAI),
    ("/v1beta/models/gemini-2.5-pro:generateContent", Dialect.GEMINI),
    ("/v1beta/models", Dialect.GEMINI),
    ("/v1/models/gemini-2.5-pro:streamGenerateContent", Dialect.GEMINI),
    ("/v1/models/gemini-2.5-pro:countTokens", Dialect.GEMINI),
    ("/v1/models", Dialect.PROBLEM),
    ("/", Dialect.PROBLEM),
    ("*", Dialect.PROBLEM),
    ("", Dialect.PROBLEM),
]


class TestDialect:
    @pytest.mark.parametrize(("names", "dialect"), HEADER_CASES)
    @pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/chat/completions", "/v1/messages"])
    def test_headers_decide_before_the_path(self, names: tuple[str, ...], dialect: Dialect, path: str) -> None:
        assert dialect_of(path, ("host", "authorization", *names)) is dialect

    @pytest.mark.parametrize(("path", "dialect"), PATH_CASES)
    def test_the_path_decides_where_no_header_does(self, path: str, dialect: Dialect) -> None:
        assert dialect_of(path, ("host", "content-type")) is dialect

    def test_on_a_shared_path_the_kind_of_credential_decides(self) -> None:
        assert dialect_of("/v1/models", ("x-api-key",)) is Dialect.ANTHROPIC
        assert dialect_of("/v1/models", ("authorization",), bearer=True) is Dialect.OPENAI
        assert dialect_of("/health", ("authorization",), bearer=True) is Dialect.PROBLEM

    def test_a_bearer_credential_does_not_overrule_a_telling_path(self) -> None:
        assert dialect_of("/v1/messages", ("authorization",), bearer=True) is Dialect.ANTHROPIC


def rendered(error: ExchangeError, dialect: Dialect, request_id: str = "id-1") -> tuple[Answer, dict[str, str], object]:
    answer = render(error, dialect, request_id)
    return answer, dict(answer.headers), json.loads(answer.body)


REFUSED = ExchangeError("upstream_refused", "Refused.", status=502, fault=Fault.UPSTREAM, hint="start it")


class TestRender:
    def test_anthropic(self) -> None:
        answer, headers, body = rendered(REFUSED, Dialect.ANTHROPIC)
        assert answer.status == 502
        assert body == {
            "type": "error",
            "error": {"type": "api_error", "message": "Refused. (start it)", "code": "upstream_refused"},
            "request_id": "id-1",
        }
        assert headers == {
            "Content-Type": "application/json",
            "x-kgb-request-id": "id-1",
            "request-id": "id-1",
            "x-kgb-error": "upstream_refused",
        }

    @pytest.mark.parametrize(
        ("status", "kind"),
        [(400, "invalid_request_error"), (401, "authentication_error"), (403, "permission_error"),
         (404, "not_found_error"), (408, "invalid_request_error"), (413, "request_too_large"),
         (426, "invalid_request_error"), (429, "rate_limit_error"), (500, "api_error"), (502, "api_error"),
         (503, "api_error"), (504, "timeout_error"), (508, "api_error"), (529, "overloaded_error")],
    )  # fmt: skip
    def test_anthropic_types_follow_the_status(self, status: int, kind: str) -> None:
        _, _, body = rendered(ExchangeError("c", "m", status=status), Dialect.ANTHROPIC)
        assert isinstance(body, dict)
        assert body["error"]["type"] == kind

    def test_openai(self) -> None:
        _, headers, body = rendered(REFUSED, Dialect.OPENAI)
        assert body == {
            "error": {
                "message": "Refused. (start it)",
                "type": "server_error",
                "param": None,
                "code": "upstream_refused",
                "request_id": "id-1",
            }
        }
        assert headers["x-request-id"] == "id-1"
        assert "request-id" not in headers

    def test_openai_blames_the_caller_below_500(self) -> None:
        _, _, body = rendered(ExchangeError("c", "m", status=413), Dialect.OPENAI)
        assert isinstance(body, dict)
        assert body["error"]["type"] == "invalid_request_error"

    def test_gemini(self) -> None:
        _, headers, body = rendered(REFUSED, Dialect.GEMINI)
        assert body == {
            "error": {
                "code": 502,
                "message": "Refused. (start it)",
                "status": "UNAVAILABLE",
                "details": [
                    {
                        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                        "reason": "UPSTREAM_REFUSED",
                        "domain": "kgb-gateway",
                        "metadata": {"request_id": "id-1"},
                    }
                ],
            }
        }
        assert headers["x-kgb-request-id"] == "id-1"

    @pytest.mark.parametrize(
        ("status", "name"), [(401, "UNAUTHENTICATED"), (418, "FAILED_PRECONDITION"), (504, "DEADLINE_EXCEEDED"),
                             (599, "INTERNAL")]
    )  # fmt: skip
    def test_gemini_statuses_follow_the_status(self, status: int, name: str) -> None:
        _, _, body = rendered(ExchangeError("c", "m", status=status), Dialect.GEMINI)
        assert isinstance(body, dict)
        assert body["error"]["status"] == name

    def test_problem_details(self) -> None:
        """RFC 9457 section 3."""
        _, headers, body = rendered(REFUSED, Dialect.PROBLEM)
        assert headers["Content-Type"] == "application/problem+json"
        assert body == {
            "type": "about:blank",
            "title": "upstream refused",
            "status": 502,
            "detail": "Refused.",
            "code": "upstream_refused",
            "fault": "upstream",
            "hint": "start it",
            "request_id": "id-1",
        }

    @pytest.mark.parametrize("dialect", list(Dialect))
    def test_every_dialect_carries_code_id_and_advice(self, dialect: Dialect) -> None:
        error = ExchangeError("busy", "Full.", status=503, retry=True, headers=[("Retry-After", "1")])
        answer, headers, _ = rendered(error, dialect, "id-7")
        assert headers["x-kgb-error"] == "busy"
        assert headers["x-should-retry"] == "true"
        assert headers["Retry-After"] == "1"
        assert b"id-7" in answer.body

    @pytest.mark.parametrize("dialect", list(Dialect))
    def test_retrying_in_vain_is_advised_against(self, dialect: Dialect) -> None:
        _, headers, _ = rendered(ExchangeError("c", "m", status=413, retry=False), dialect)
        assert headers["x-should-retry"] == "false"

    @pytest.mark.parametrize("dialect", list(Dialect))
    def test_what_never_became_a_request_has_no_id(self, dialect: Dialect) -> None:
        _, headers, _ = rendered(ExchangeError("c", "m", status=400), dialect, "")
        assert not [name for name in headers if name.endswith("request-id")]

    @pytest.mark.parametrize("dialect", list(Dialect))
    def test_any_text_gives_valid_json(self, dialect: Dialect) -> None:
        error = ExchangeError("c", 'quote " backslash \\ caf\xe9 \udcff', status=400)
        _, _, body = rendered(error, dialect)
        assert isinstance(body, dict)


class TestExceptions:
    def test_an_exchange_error_says_what_it_was_given(self) -> None:
        error = ExchangeError("c", "m", status=429, hint="h", headers=[("A", "1")])
        assert str(error) == "m"
        assert (error.code, error.status, error.fault, error.hint) == ("c", 429, Fault.CALLER, "h")
        assert error.retry is None
        assert error.headers == (("A", "1"),)

    def test_settings_errors_hold_every_fault(self) -> None:
        error = SettingsError(iter(["one", "two"]))
        assert error.faults == ("one", "two")
        assert str(error) == "one\ntwo"

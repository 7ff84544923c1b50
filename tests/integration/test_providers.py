"""Every known provider against an upstream that refuses the wrong credential, path, host or signature."""

import asyncio
import base64
import contextlib
import datetime as dt
import json
import struct
import zlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import botocore.auth
import botocore.awsrequest
import botocore.credentials
import botocore.eventstream
import botocore.session
import pytest
from google.auth import credentials as google_credentials

from fiedler_proxy.errors import SettingsError
from fiedler_proxy.provider import PROVIDERS, Place
from fiedler_proxy.router import ROUTER
from fiedler_proxy.slot_choice import Choice
from fiedler_proxy.testing import RawClient, ReceivedRequest, ScriptedUpstream, UpstreamConnection, start_app
from kgb_gateway.app import create_app, load

CENTRAL, CALLERS = "central-key", "callers-key"
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()

NATIVE = {
    "anthropic": "/v1/messages", "openai": "/v1/chat/completions", "gemini": "/v1beta/models/g:streamGenerateContent?alt=sse",
    "gemini-openai": "/v1/chat/completions", "vertex": "/v1/projects/p/locations/l/publishers/google/models/g:generateContent",
    "bedrock": "/model/anthropic.claude-v1%3A0/invoke", "bedrock-key": "/model/anthropic.claude-v1%3A0/converse",
    "azure": "/openai/v1/responses", "foundry": "/v1/messages", "fiedler": "/v1/messages",
}  # fmt: skip
"""A path of each provider's own; the others speak OpenAI's."""


def presented(request: ReceivedRequest, place: Place) -> bytes:
    """The credential that ``request`` shows where ``place`` is; no other one may be there."""
    held = {
        name.lower(): value
        for name, value in request.headers
        if name.lower() in (b"authorization", b"x-api-key", b"x-goog-api-key", b"api-key", b"x-fiedler-key")
    }
    name = b"authorization" if place is Place.BEARER else place.value.encode()
    assert set(held) == {name}, held
    return held[name]


def accepting(place: Place, key: str, path: str) -> Any:
    """A script that answers 200 to the right credential, host and path, and 401, 421 and 404 to others."""

    async def script(connection: UpstreamConnection) -> None:
        request = await connection.request()
        await request.body()
        status = 200
        if request.target.decode() != path:
            status = 404
        elif not dict(request.headers)[b"Host"].startswith(b"127.0.0.1:"):
            status = 421
        elif presented(request, place) != (b"Bearer " if place is Place.BEARER else b"") + key.encode():
            status = 401
        await connection.send_response(status, [], b"answer")

    return script


@attrs.define(eq=False)
class Site:
    host: str
    port: int

    async def post(self, target: str, headers: Any = (), body: bytes = BODY) -> Any:
        async with RawClient(self.host, self.port) as client:
            await client.post(target, headers, body)
            return await client.read_response()


@contextlib.asynccontextmanager
async def site(
    name: str, upstream: ScriptedUpstream, tmp_path: Path, table: Mapping[str, object]
) -> AsyncIterator[Site]:
    """A gateway whose only route goes to the provider ``name``, which is at ``upstream``."""
    base = PROVIDERS[name].url.partition("://")[2].partition("/")[2]
    app = create_app(
        upstream="http://127.0.0.1:9",
        data_dir=str(tmp_path),
        chain=("request_id", "fiedler"),
        providers={name: {"url": f"{upstream.url}/{base}".rstrip("/"), **table}},
        slots={"s": [{"upstreams": [name], "name": name}]},
    )
    app[ROUTER].put(Choice("s"))
    async with start_app(app) as address:
        yield Site(address.host, address.port)


HEADER_PLACED = sorted(
    name for name, provider in PROVIDERS.items() if provider.place not in (Place.SIGV4, Place.GOOGLE, Place.NONE)
)


@pytest.mark.parametrize("name", HEADER_PLACED)
async def test_a_central_key_takes_the_callers_place(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = PROVIDERS[name]
    target = NATIVE.get(name, "/v1/chat/completions")
    base = provider.url.partition("://")[2].partition("/")
    path = (f"/{base[2]}" if base[2] else "") + target.removeprefix(provider.cut)
    (tmp_path / "key").write_text(f"{CENTRAL}\n")
    callers = [("x-api-key", CALLERS)] if provider.place is not Place.FIEDLER_KEY else []
    for key, status in ((CENTRAL, 200), ("another", 401)):
        async with ScriptedUpstream(accepting(provider.place, key, path)) as upstream:
            async with site(name, upstream, tmp_path, {"keys": [f"file:{tmp_path}/key"]}) as at:
                assert (await at.post(target, callers)).status == status


@pytest.mark.parametrize("name", [name for name in HEADER_PLACED if name != "fiedler"])
async def test_without_a_key_the_callers_own_passes(name: str, tmp_path: Path) -> None:
    provider = PROVIDERS[name]
    target = NATIVE.get(name, "/v1/chat/completions")
    base = provider.url.partition("://")[2].partition("/")
    path = (f"/{base[2]}" if base[2] else "") + target.removeprefix(provider.cut)
    header = (
        ("Authorization", f"Bearer {CALLERS}") if provider.place is Place.BEARER else (provider.place.value, CALLERS)
    )
    async with ScriptedUpstream(accepting(provider.place, CALLERS, path)) as upstream:
        async with site(name, upstream, tmp_path, {}) as at:
            assert (await at.post(target, [header])).status == 200


@pytest.mark.parametrize("name", ["ollama", "vllm", "llamacpp"])
async def test_a_server_that_asks_for_no_key_sees_none(name: str, tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream, site(name, upstream, tmp_path, {}) as at:
        await at.post(
            "/v1/chat/completions?api-key=secret&x=1", [("Authorization", "Bearer secret"), ("x-api-key", "secret")]
        )
    (request,) = upstream.requests
    assert b"secret" not in request.raw_head
    assert request.target == b"/v1/chat/completions?x=1"


# Bedrock: Signature Version 4.


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("ACCESS_KEY_ID", "AKIDEXAMPLE"),
        ("SECRET_ACCESS_KEY", "wJalrXUtnFEMI"),
        ("SESSION_TOKEN", "tok"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def signature_is_right(request: ReceivedRequest, body: bytes) -> bool:
    """Sign what arrived as botocore would, at the time that stands in it, and compare."""
    headers = {name.decode().lower(): value.decode() for name, value in request.headers}
    said = headers["authorization"]
    names = said.partition("SignedHeaders=")[2].partition(",")[0].split(";")
    scope = said.partition("Credential=")[2].partition(",")[0].split("/")
    signed = {name: headers[name] for name in names}
    url = f"http://{headers['host']}{request.target.decode()}"
    fresh = botocore.awsrequest.AWSRequest(request.method, url, headers=signed, data=body)
    fresh.context["timestamp"] = headers["x-amz-date"]
    auth = botocore.auth.SigV4Auth(
        botocore.credentials.Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI", "tok"), scope[4 - 1], scope[2]
    )
    text = auth.string_to_sign(fresh, auth.canonical_request(fresh))
    return said.endswith(f"Signature={auth.signature(text, fresh)}") and "host" in names and scope[0] == "AKIDEXAMPLE"


async def test_bedrock_is_signed_anew_and_its_stream_passes_byte_for_byte(aws: None, tmp_path: Path) -> None:
    stream = b"".join(frame({"bytes": "eyJ0eXBlIjoicGluZyJ9", "p": "x" * size}) for size in (0, 1, 700, 5000))
    checked: list[bool] = []

    async def script(connection: UpstreamConnection) -> None:
        request = await connection.request()
        body = await request.body()
        checked.append(signature_is_right(request, body))
        checked.append(body == BODY)
        checked.append(b"content-length" in {name.lower() for name, _ in request.headers})
        await connection.send_head(
            200, [("Content-Type", "application/vnd.amazon.eventstream"), ("Transfer-Encoding", "chunked")]
        )
        for start in range(0, len(stream), 700):
            await connection.chunk(stream[start : start + 700])
        await connection.end_chunks()

    table = {"names": {"region": "eu-west-1"}}
    async with ScriptedUpstream(script) as upstream, site("bedrock", upstream, tmp_path, table) as at:
        signed = [
            (
                "Authorization",
                "AWS4-HMAC-SHA256 Credential=CALLER/20250101/us-east-1/bedrock/aws4_request, Signature=0",
            ),
            ("X-Amz-Date", "20250101T000000Z"),
            ("X-Amz-Security-Token", "callers-token"),
            ("X-Amzn-Bedrock-Trace", "ENABLED"),
            ("x-amz-extra", "signed too"),
        ]
        answer = await at.post("/model/anthropic.claude-v1%3A0/invoke-with-response-stream?a=b%20c", signed)
        assert (answer.status, answer.body) == (200, stream)
        reader = botocore.eventstream.EventStreamBuffer()
        reader.add_data(answer.body)
        assert [event.headers[":event-type"] for event in reader] == ["chunk"] * 4
        async with RawClient(at.host, at.port) as client:
            await client.request("POST", "/model/m/invoke", [("Transfer-Encoding", "chunked")], exact=False)
            await client.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY))
            assert (await client.read_response()).status == 200
    assert checked == [True] * 6
    assert all(
        b"CALLER" not in request.raw_head and b"callers-token" not in request.raw_head for request in upstream.requests
    )


def frame(payload: Mapping[str, str]) -> bytes:
    """One event as AWS frames it (docs.aws.amazon.com, "Event stream encoding")."""
    headers = b""
    for name, value in ((":message-type", "event"), (":event-type", "chunk"), (":content-type", "application/json")):
        headers += bytes((len(name),)) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
    body = json.dumps(payload).encode()
    prelude = struct.pack(">II", 16 + len(headers) + len(body), len(headers))
    prelude += struct.pack(">I", zlib.crc32(prelude))
    return prelude + headers + body + struct.pack(">I", zlib.crc32(prelude + headers + body))


async def test_awss_own_client_reads_a_stream_through_the_gateway(aws: None, tmp_path: Path) -> None:
    stream = frame({"bytes": base64.b64encode(b'{"type":"message_stop"}').decode()})
    checked: list[bool] = []

    async def script(connection: UpstreamConnection) -> None:
        request = await connection.request()
        checked.append(signature_is_right(request, await request.body()))
        await connection.send_response(200, [("Content-Type", "application/vnd.amazon.eventstream")], stream)

    def call(at: Site) -> list[bytes]:
        session = botocore.session.Session()
        session.set_credentials("CALLERS", "own")
        client = session.create_client("bedrock-runtime", "us-east-1", endpoint_url=f"http://{at.host}:{at.port}")
        answer = client.invoke_model_with_response_stream(modelId="anthropic.claude-3:0", body=BODY)
        events = [event["chunk"]["bytes"] for event in answer["body"]]
        client.close()
        return events

    async with ScriptedUpstream(script) as upstream:
        async with site("bedrock", upstream, tmp_path, {"names": {"region": "eu-west-1"}}) as at:
            assert await asyncio.to_thread(call, at) == [b'{"type":"message_stop"}']
    assert checked == [True]
    assert b"CALLERS" not in upstream.requests[0].raw_head


async def test_bedrock_without_credentials_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    async with ScriptedUpstream() as upstream:
        async with site("bedrock", upstream, tmp_path, {"names": {"region": "eu-west-1"}}) as at:
            answer = await at.post("/model/m/invoke")
            assert (answer.status, dict(answer.headers)[b"x-kgb-error"]) == (503, b"no_provider_key")
            assert b"botocore finds no credentials" in answer.body
    assert upstream.requests == []


async def test_what_a_caller_signed_is_refused_where_nobody_signs_anew(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream, site("bedrock-key", upstream, tmp_path, {}) as at:
        answer = await at.post("/model/m/invoke", [("Authorization", "AWS4-HMAC-SHA256 Credential=x")])
        assert (answer.status, dict(answer.headers)[b"x-kgb-error"]) == (400, b"signed_by_caller")
    assert upstream.requests == []


# Vertex AI: a token of Google's.


class Fetched(google_credentials.Credentials):
    """Credentials that are refreshed without a network."""

    fetched = 0

    def refresh(self, _: object) -> None:
        type(self).fetched += 1
        self.token = f"google-token-{self.fetched}"
        self.expiry = dt.datetime.now(dt.UTC).replace(tzinfo=None) + dt.timedelta(hours=1)


FETCHED: Any = Fetched


async def test_vertex_sends_a_token_of_googles_and_fetches_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("google.auth.default", lambda scopes: (FETCHED(), "project"))
    target = NATIVE["vertex"]
    async with ScriptedUpstream(accepting(Place.BEARER, "google-token-1", target)) as upstream:
        async with site(
            "vertex", upstream, tmp_path, {"keys": ["google:default"], "names": {"location": "europe-west1"}}
        ) as at:
            answers = await asyncio.gather(*(at.post(target, [("x-goog-api-key", CALLERS)]) for _ in range(5)))
            assert [answer.status for answer in answers] == [200] * 5


async def test_a_callers_own_token_passes_to_vertex(tmp_path: Path) -> None:
    target = NATIVE["vertex"]
    async with ScriptedUpstream(accepting(Place.BEARER, CALLERS, target)) as upstream:
        async with site("vertex", upstream, tmp_path, {"names": {"location": "europe-west1"}}) as at:
            assert (await at.post(target, [("Authorization", f"Bearer {CALLERS}")])).status == 200


# What is missing is said at the start.


@pytest.mark.parametrize(
    ("table", "why"),
    [
        (
            {"azure": {}},
            "needs 'resource' for https://{resource}.openai.azure.com: set it there, or AZURE_OPENAI_RESOURCE",
        ),
        ({"bedrock": {}}, "needs names.region"),
        ({"bedrock": {"names": {"region": "x"}, "keys": ["env:A"]}}, "it signs, with aws:PROFILE"),
        ({"bedrock": {"names": {"region": "x"}, "keys": ["aws:a", "aws:b"]}}, "takes one source"),
        ({"openai": {"keys": ["aws:default"]}}, "only a provider that signs takes it"),
        ({"bedrock": {"url": "http://127.0.0.1:9"}}, "needs names.region, or AWS_REGION"),
        ({"openai": {"keys": ["sk-secret-itself"]}}, "names no source of a key: write env:NAME"),
        ({"opnai": {"like": "opnai", "url": "http://x"}}, "did you mean 'openai'?"),
        ({"mine": {}}, "needs a url, or `like`"),
    ],
)
def test_a_provider_that_cannot_work_is_a_fault(
    table: dict[str, object], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_REGION", raising=False)
    with pytest.raises(SettingsError) as raised:
        load({"providers": table})
    (fault,) = raised.value.faults
    assert why in fault
    assert "sk-secret-itself" not in fault


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for name, table in (
        ("bedrock", {"names": {"region": "x"}}),
        ("vertex", {"names": {"location": "x"}, "keys": ["google:default"]}),
    ):
        with pytest.raises(SettingsError, match=rf"pip install 'kgb-gateway\[{name}\]'"):
            load({"providers": {name: table}})

"""Providers as data: base URL, how a credential is presented, whose dialect is spoken, which paths are native.

Pure. The table is what is known of vendors in general (each entry names the document it is from); the configuration's
``[providers]`` extends and overrides it. Nothing here reads a credential.
"""

import enum
import re
from collections.abc import Collection, Mapping

import attrs

from fiedler_proxy.errors import Dialect
from fiedler_proxy.upstream import Upstream


class Place(enum.StrEnum):
    """Where a provider looks for a credential: a header, or a signature that is made of it."""

    BEARER = "bearer"
    X_API_KEY = "x-api-key"
    X_GOOG_API_KEY = "x-goog-api-key"
    API_KEY = "api-key"
    FIEDLER_KEY = "x-fiedler-key"
    SIGV4 = "sigv4"
    GOOGLE = "google"
    NONE = "none"


SIGNERS: Mapping[Place, tuple[str, str]] = {
    Place.SIGV4: ("botocore", "bedrock"),
    Place.GOOGLE: ("google.auth", "vertex"),
}
"""What a place needs beyond this package: module, and the extra that installs it."""

CALLER_CREDENTIALS = frozenset((b"authorization", b"x-api-key", b"x-goog-api-key", b"api-key", b"x-amz-security-token"))
"""What of a caller goes, when a credential of the gateway's own takes its place."""

_VARIABLE = re.compile(r"\{(\w+)\}")


@attrs.frozen
class Provider:
    """A vendor or a server that speaks like one.

    ``url``: base URL, with ``{names}`` that the environment's ``named_by`` or the configuration fill.
    ``variables``: of the environment, asked in order for a key. ``paths``: prefixes of the paths it serves, so
    that others can be explained; ``cut`` is taken off the beginning of a target, where its base path has it already;
    ``dialect``: of its errors. ``fiedler``: it is another gateway of ours; ``aws``: its callers may sign; ``models``: where
    it lists its models, "" for nowhere.
    """

    name: str
    url: str
    place: Place = Place.BEARER
    dialect: Dialect = Dialect.OPENAI
    variables: tuple[str, ...] = ()
    named_by: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    paths: tuple[str, ...] = ("/v1/",)
    cut: str = ""
    fiedler: bool = False
    aws: bool = False
    models: str = "/v1/models"

    def base_url(self, given: Mapping[str, str], environ: Mapping[str, str]) -> str:
        """The base URL with its names filled in. ValueError tells which one nobody gave."""

        def fill(match: re.Match[str]) -> str:
            name = match[1]
            value = self.value_of(name, given, environ)
            if not value:
                asked = " or ".join(self.named_by.get(name, ())) or "nothing"
                raise ValueError(f"needs {name!r} for {self.url}: set it there, or {asked} in the environment")
            if not re.fullmatch(r"[A-Za-z0-9.-]+", value):
                raise ValueError(f"has {value!r} as {name}, which no host name may hold")
            return value

        return _VARIABLE.sub(fill, self.url)

    def value_of(self, name: str, given: Mapping[str, str], environ: Mapping[str, str]) -> str:
        """What stands for ``name`` in the URL, "" for nothing."""
        named = (environ.get(variable) for variable in self.named_by.get(name, ()))
        return given.get(name) or next(filter(None, named), "")


_ANTHROPIC = ("/v1/messages", "/v1/complete", "/v1/models", "/v1/files", "/api/", "/v1/skills", "/v1/organizations")
_REGION = {"region": ("AWS_REGION", "AWS_DEFAULT_REGION")}

# https://platform.claude.com/docs/en/api/overview, https://platform.openai.com/docs/api-reference/authentication,
# https://ai.google.dev/api, https://cloud.google.com/vertex-ai/docs/reference/rest,
# https://docs.aws.amazon.com/bedrock/latest/userguide/api-keys-use.html,
# https://learn.microsoft.com/azure/ai-foundry/openai/reference, https://docs.x.ai/docs/api-reference,
# https://docs.together.ai/reference, https://api-docs.deepseek.com, https://docs.mistral.ai/api,
# https://console.groq.com/docs/openai, https://openrouter.ai/docs/api-reference/authentication
_TABLE = (
    Provider(
        "anthropic", "https://api.anthropic.com", Place.X_API_KEY, Dialect.ANTHROPIC, ("ANTHROPIC_API_KEY",),
        paths=_ANTHROPIC,
    ),
    Provider("openai", "https://api.openai.com", variables=("OPENAI_API_KEY",)),
    Provider(
        "gemini", "https://generativelanguage.googleapis.com", Place.X_GOOG_API_KEY, Dialect.GEMINI,
        ("GEMINI_API_KEY", "GOOGLE_API_KEY"), paths=("/v1beta/", "/v1/models", "/upload/"), models="/v1beta/models",
    ),
    Provider(
        "gemini-openai", "https://generativelanguage.googleapis.com/v1beta/openai", Place.BEARER, Dialect.OPENAI,
        ("GEMINI_API_KEY", "GOOGLE_API_KEY"), cut="/v1",
    ),
    Provider(
        "vertex", "https://{location}-aiplatform.googleapis.com", Place.GOOGLE, Dialect.GEMINI,
        named_by={"location": ("CLOUD_ML_REGION", "GOOGLE_CLOUD_LOCATION")}, paths=("/v1/projects/", "/v1beta1/projects/"),
        models="",
    ),
    Provider(
        "bedrock", "https://bedrock-runtime.{region}.amazonaws.com", Place.SIGV4, Dialect.ANTHROPIC, named_by=_REGION,
        paths=("/model/",), aws=True, models="",
    ),
    Provider(
        "bedrock-key", "https://bedrock-runtime.{region}.amazonaws.com", Place.BEARER, Dialect.ANTHROPIC,
        ("AWS_BEARER_TOKEN_BEDROCK",), named_by=_REGION, paths=("/model/",), aws=True, models="",
    ),
    Provider(
        "azure", "https://{resource}.openai.azure.com", Place.API_KEY, variables=("AZURE_OPENAI_API_KEY",),
        named_by={"resource": ("AZURE_OPENAI_RESOURCE",)}, paths=("/openai/",), models="/openai/v1/models",
    ),
    Provider(
        "foundry", "https://{resource}.services.ai.azure.com/anthropic", Place.X_API_KEY, Dialect.ANTHROPIC,
        ("ANTHROPIC_FOUNDRY_API_KEY",), named_by={"resource": ("ANTHROPIC_FOUNDRY_RESOURCE",)}, paths=_ANTHROPIC,
    ),
    Provider("xai", "https://api.x.ai", variables=("XAI_API_KEY",)),
    Provider("together", "https://api.together.xyz", variables=("TOGETHER_API_KEY",)),
    Provider("deepseek", "https://api.deepseek.com", variables=("DEEPSEEK_API_KEY",), paths=("/",)),
    Provider("mistral", "https://api.mistral.ai", variables=("MISTRAL_API_KEY",)),
    Provider("groq", "https://api.groq.com/openai", variables=("GROQ_API_KEY",)),
    Provider("openrouter", "https://openrouter.ai/api", variables=("OPENROUTER_API_KEY",)),
    Provider("ollama", "http://127.0.0.1:11434", Place.NONE, paths=("/v1/", "/api/")),
    Provider("vllm", "http://127.0.0.1:8000", Place.NONE),
    Provider("llamacpp", "http://127.0.0.1:8080", Place.NONE),
    Provider(
        "fiedler", "http://127.0.0.1:8081", Place.FIEDLER_KEY, Dialect.ANTHROPIC, ("FIEDLER_KEY",), paths=("/",),
        fiedler=True,
    ),
)  # fmt: skip

PROVIDERS: Mapping[str, Provider] = {provider.name: provider for provider in _TABLE}
"""Every provider that is known by name."""


@attrs.frozen
class Target:
    """A provider as it is configured here: where its requests go, and the names of the keys that are sent there.

    ``central``: a key of the gateway's own takes the place of the caller's credential; ``keys`` name where they are read from
    (``env:NAME``, ``file:/path``, ``credential:NAME``), in order. ``region``: AWS's, for a signature.
    """

    provider: Provider
    upstream: Upstream
    keys: tuple[str, ...] = ()
    central: bool = False
    region: str = ""

    @property
    def name(self) -> str:
        """What routes call it."""
        return self.upstream.name


def header_for(place: Place, key: str) -> tuple[bytes, bytes]:
    """The header in which ``key`` is presented. ValueError for a key that no header can hold, or a place that is none."""
    if not key.isascii() or not key.isprintable() or not key.strip():
        raise ValueError("the key holds what no header may hold")
    if place is Place.BEARER:
        return b"Authorization", b"Bearer " + key.encode()
    if place in (Place.SIGV4, Place.GOOGLE, Place.NONE):
        raise ValueError(f"{place} is no header")
    return place.value.encode(), key.encode()


def without_parameter(target: str, names: Collection[str]) -> str:
    """``target`` without the query parameters called ``names``; every other byte stays."""
    path, mark, query = target.partition("?")
    if not mark:
        return target
    kept = [part for part in query.split("&") if part.partition("=")[0] not in names]
    return path + mark + "&".join(kept) if kept else path


def native(path: str, names: Collection[str], *, bearer: bool) -> str:
    """Which of the three great dialects a bare path is of, by headers first: "anthropic", "openai", "gemini", or "" for none.

    CONTRACTS: the newest clients share ``/v1/models`` and even ``Authorization: Bearer``, so headers decide before paths do.
    """
    if "x-goog-api-key" in names or path.startswith(("/v1beta/", "/upload/v1beta/")) or ":generateContent" in path:
        return "gemini"
    if "anthropic-version" in names or "anthropic-beta" in names or "x-api-key" in names:
        return "anthropic"
    if path.startswith(("/v1/messages", "/api/event_logging", "/api/hello")) or path == "/v1/complete":
        return "anthropic"
    return "openai" if path.startswith(OPENAI_PATHS) or (bearer and path.startswith("/v1/")) else ""


OPENAI_PATHS = (
    "/v1/chat/", "/v1/responses", "/v1/completions", "/v1/embeddings", "/v1/images", "/v1/audio", "/v1/realtime",
    "/v1/moderations", "/v1/fine_tuning", "/v1/assistants", "/v1/threads", "/v1/files", "/v1/batches", "/v1/vector_stores",
    "/v1/uploads", "/v1/conversations", "/v1/videos", "/v1/containers", "/v1/evals",
)  # fmt: skip

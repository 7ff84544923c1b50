"""Signers: credentials that are made of a request, or fetched for it, by a vendor's own library.

Owns when that library is asked, and that it never blocks the loop: what may read files or ask a metadata service runs in a thread. The libraries
are extras (``pip install 'kgb-gateway[bedrock]'``, ``[vertex]``) and are imported when the first signer is made.
"""

import asyncio
import importlib
import threading
import time
from pathlib import Path
from typing import Any, Protocol

import attrs

from fiedler_proxy.exchange import Exchange
from fiedler_proxy.provider import Place, Target

GOOGLE_SCOPE = "https://www.googleapis.com/auth/cloud-platform"

FRESH_SECONDS = 300.0
"""How long before its end a token is fetched anew."""

SIGNED_BY_CALLER = b"AWS4-"
"""How ``Authorization`` begins in a request that its caller has signed (Signature Version 4)."""

OF_A_SIGNATURE = frozenset((b"authorization", b"x-amz-date", b"x-amz-security-token", b"x-amz-content-sha256"))
"""What a caller's signature consists of; it goes when another takes its place, since it is for another host."""

SERVICE = "bedrock"
"""The name that AWS's signatures give to Bedrock."""


class Signer(Protocol):
    """Makes the header lines that authorise one request. LookupError, without a secret in it, when it cannot."""

    needs_body: bool

    async def lines(self, exchange: Exchange, target: Target, body: bytes) -> tuple[bytes, ...]:
        """For ``exchange`` as it goes to ``target`` with ``body``."""


def signer_of(target: Target, base: Path) -> Signer | None:
    """What signs for ``target``; None where its credential is a header like any other."""
    if target.provider.place is Place.SIGV4:
        return SigV4(target.keys[0] if target.keys else "aws:default")
    if target.provider.place is Place.GOOGLE and target.keys:
        return Google(target.keys[0], base)
    return None


def _library(name: str) -> Any:
    """A part of a vendor's library, which has no types that could be checked where it is not installed."""
    return importlib.import_module(name)


@attrs.define(eq=False)
class SigV4:
    """Signature Version 4 (docs.aws.amazon.com, "Signing AWS API requests") with botocore's credentials. ``source``: ``aws:default`` or
    ``aws:PROFILE``."""

    source: str
    needs_body: bool = True
    _credentials: Any = attrs.field(default=None, repr=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, repr=False)

    async def lines(self, exchange: Exchange, target: Target, body: bytes) -> tuple[bytes, ...]:
        """``Signer``."""
        frozen = await asyncio.to_thread(self._frozen)
        return self._signed(exchange, target, body, frozen)

    def _frozen(self) -> Any:
        with self._lock:
            if self._credentials is None:
                profile = self.source.partition(":")[2]
                session = _library("botocore.session").Session(profile=None if profile == "default" else profile)
                try:
                    self._credentials = session.get_credentials()
                except Exception as error:
                    raise LookupError(f"{self.source}: {type(error).__name__}") from None
            if self._credentials is None:
                raise LookupError(f"{self.source}: botocore finds no credentials of AWS")
            try:
                return self._credentials.get_frozen_credentials()
            except Exception as error:
                raise LookupError(f"{self.source}: {type(error).__name__}") from None

    def _signed(self, exchange: Exchange, target: Target, body: bytes, frozen: Any) -> tuple[bytes, ...]:
        upstream = target.upstream
        sent = {"host": upstream.host_header.decode("ascii")}
        for name, value in exchange.request_headers:
            lower = name.lower()
            if lower.startswith(b"x-amz-") and lower not in OF_A_SIGNATURE:
                sent[lower.decode("latin-1")] = value.decode("latin-1")
        scheme = "https" if upstream.url.startswith("https") else "http"
        url = f"{scheme}://{sent['host']}{upstream.target(exchange.target)}"
        request = _library("botocore.awsrequest").AWSRequest(exchange.method, url, headers=dict(sent), data=body)
        _library("botocore.auth").SigV4Auth(frozen, SERVICE, target.region).add_auth(request)
        return tuple(
            f"{name}: {value}".encode("latin-1") for name, value in request.headers.items() if name.lower() not in sent
        )


@attrs.define(eq=False)
class Google:
    """A token of Google's (cloud.google.com, "Application Default Credentials"). ``source``: ``google:default`` or ``file:/path`` of a key
    file, relative to ``base``."""

    source: str
    base: Path
    needs_body: bool = False
    _credentials: Any = attrs.field(default=None, repr=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, repr=False)

    async def lines(self, exchange: Exchange, target: Target, body: bytes) -> tuple[bytes, ...]:
        """``Signer``."""
        token = self._fresh() or await asyncio.to_thread(self._fetched)
        return (b"Authorization: Bearer " + token.encode("ascii"),)

    def _fresh(self) -> str:
        credentials = self._credentials
        if credentials is None or not credentials.token:
            return ""
        ends = credentials.expiry
        left = FRESH_SECONDS + 1 if ends is None else ends.timestamp() - _utc_offset(ends) - time.time()
        return str(credentials.token) if left > FRESH_SECONDS else ""

    def _fetched(self) -> str:
        with self._lock:
            if token := self._fresh():
                return token
            try:
                if self._credentials is None:
                    self._credentials = self._load()
                self._credentials.refresh(_library("google.auth.transport.requests").Request())
            except Exception as error:
                raise LookupError(f"{self.source}: {type(error).__name__}") from None
            return str(self._credentials.token)

    def _load(self) -> Any:
        auth = _library("google.auth")
        kind, _, name = self.source.partition(":")
        if kind == "file":
            credentials, _ = auth.load_credentials_from_file(
                str(self.base / Path(name).expanduser()), scopes=[GOOGLE_SCOPE]
            )
        else:
            credentials, _ = auth.default(scopes=[GOOGLE_SCOPE])
        return credentials


def _utc_offset(moment: Any) -> float:
    """Google's moments are of UTC and do not say so: ``timestamp`` takes them for local time."""
    if moment.tzinfo is not None:
        return 0.0
    return -moment.astimezone().utcoffset().total_seconds()  # type: ignore[no-any-return]

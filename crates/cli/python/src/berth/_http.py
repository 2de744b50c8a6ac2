"""Requests to an identity provider: JSON over TLS, without redirects, and with a limit of time for each response."""

from __future__ import annotations

import http.client
import io
import json
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from ._channel import is_loopback
from ._secret import Secret
from .errors import BerthError, ConfigurationError, Unreachable

#: For connecting, for the TLS handshake, and for the whole response.
TIMEOUT = 15.0
_MAX_RESPONSE_BYTES = 512 * 1024
_SECRETS = frozenset({"token", "access_token", "id_token", "refresh_token", "device_code"})
_CHECK_PROVIDER = "check the network to the identity provider and the issuer of the context"
#: RFC 6749, section 5.2: a refusal is JSON with one of these.
_REFUSALS = (400, 401)


def request(url: str, form: Secret | None, ca: Path | None) -> dict[str, Any]:
    """The JSON object at an address, or the answer to a form. Tokens in it are secrets."""
    check(url)
    answer = _exchange(url, None if form is None else form.encode(), _tls(url, ca))
    if isinstance(answer, BerthError):
        raise answer
    return answer


def check(url: str) -> None:
    """Rejects an address that is neither https nor on loopback."""
    try:
        parts = urllib.parse.urlsplit(url)
        protected = parts.scheme == "https" or parts.scheme == "http" and is_loopback(parts.hostname or "")
    except ValueError:
        protected = False
    if not protected:
        raise ConfigurationError(f"{url} of the identity provider is not https.", next_step="use a provider with TLS")


def parse(text: str | bytes) -> dict[str, Any] | None:
    """A JSON object whose tokens are secrets; ``None`` for other text. No error quotes the text."""
    try:
        document = json.loads(text, object_hook=_hide)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _hide(fields: dict[str, Any]) -> dict[str, Any]:
    """Tokens as secrets from the first moment; a token that is no text is omitted."""
    for name in _SECRETS.intersection(fields):
        fields[name] = Secret(fields[name]) if isinstance(fields[name], str) else None
    return fields


def _tls(url: str, ca: Path | None) -> ssl.SSLContext | None:
    if not url.startswith("https:"):
        return None
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise ConfigurationError(
            f"The certificate authority {ca} of the identity provider cannot be used: {error.strerror or error}.",
            next_step="set oidc.ca of the context to the PEM file of the authority",
        ) from None


def _exchange(url: str, form: bytes | None, tls: ssl.SSLContext | None) -> dict[str, Any] | BerthError:
    """The answer, or the error: it is raised where no variable holds the form or the response."""
    opener = urllib.request.build_opener(_NoRedirects, _PlainHandler, _TlsHandler(context=tls))
    asked = urllib.request.Request(url, form, {"accept": "application/json"})
    try:
        with opener.open(asked, timeout=TIMEOUT) as reply:
            document = parse(reply.read(_MAX_RESPONSE_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            if error.code not in _REFUSALS:
                return Unreachable(f"{url} answers with HTTP status {error.code}.", next_step=_CHECK_PROVIDER)
            try:
                document = parse(error.read(_MAX_RESPONSE_BYTES))
            except (OSError, http.client.HTTPException):
                document = None
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = getattr(error, "reason", None) or str(error) or type(error).__name__
        return Unreachable(f"{url} cannot be reached: {cause}.", next_step=_CHECK_PROVIDER)
    if document is None:
        return Unreachable(f"{url} answers with something other than JSON.", next_step=_CHECK_PROVIDER)
    return document


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: its target may be plaintext, or another server."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Bounded(io.RawIOBase):
    """The bytes of a socket, all of which must arrive until a moment."""

    def __init__(self, connection: socket.socket, raw: io.RawIOBase) -> None:
        self._connection, self._raw = connection, raw
        self._end = time.monotonic() + TIMEOUT

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._connection.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp: Any = io.BufferedReader(_Bounded(sock, self.fp.detach()))


class _PlainConnection(http.client.HTTPConnection):
    response_class = _Response


class _TlsConnection(http.client.HTTPSConnection):
    response_class = _Response


class _PlainHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PlainConnection, req)


class _TlsHandler(urllib.request.HTTPSHandler):
    def __init__(self, context: ssl.SSLContext | None) -> None:
        super().__init__(context=context)
        self._berth_context = context

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_TlsConnection, req, context=self._berth_context)

"""The sign-in of a context: stored and renewed like that of ``berth login``, or made by the device flow."""

from __future__ import annotations

import dataclasses
import json
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from . import _private_file
from ._channel import is_loopback
from ._secret import Secret
from ._settings import Oidc, config_dir
from .errors import BerthError, ConfigurationError, CredentialError, LoginRequired, Unreachable

_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_SECRETS = frozenset({"token", "access_token", "id_token", "refresh_token", "device_code"})
_REQUEST_TIMEOUT = 15.0
_MAX_RESPONSE_BYTES = 512 * 1024
_DEFAULT_LIFETIME = 300
_SLOW_DOWN = 5.0
_LOGIN = "run `berth login`, or connect in a terminal or notebook, which can sign in"
_CHECK_PROVIDER = "check the network to the identity provider and the issuer of the context"


@dataclass
class StoredLogin:
    """The tokens of one sign-in: the file ``tokens/CONTEXT.json`` of the ``berth`` command."""

    issuer: str
    client_id: str
    token: Secret
    refresh_token: Secret | None
    obtained_at: int
    expires_at: int

    def is_of(self, oidc: Oidc) -> bool:
        """Whether this provider gave it to this client."""
        return (self.issuer, self.client_id) == (oidc.issuer, oidc.client_id)

    def is_valid(self) -> bool:
        """Whether the token can still be used."""
        return time.time() < self.expires_at

    def is_due(self) -> bool:
        """Whether it should be renewed: in the last minute of its life, and in the last fifth of a short one."""
        return time.time() + min((self.expires_at - self.obtained_at) // 5, 60) >= self.expires_at


def store_path(context: str) -> Path:
    """The file of a context's sign-in."""
    return config_dir() / "tokens" / f"{context or 'default'}.json"


def current(context: str, oidc: Oidc) -> Secret:
    """The token of the stored sign-in, renewed if it is about to expire."""
    login = _usable(context, oidc)
    if not login.is_due():
        return login.token
    with _private_file.lock(store_path(context)):
        # Another program may have renewed it during the wait for the lock.
        login = _usable(context, oidc)
        if not login.is_due():
            return login.token
        try:
            return _renew(context, oidc, login).token
        except BerthError:
            # The provider is away for a moment, and the token still serves.
            if login.is_valid():
                return login.token
            raise


def sign_in(context: str, oidc: Oidc, tell: Callable[[str], None], timeout: float = 600.0) -> Secret:
    """Signs in with a code on another device (RFC 8628), and stores the tokens."""
    provider = _discover(oidc)
    endpoint = provider.get("device_authorization_endpoint")
    if not endpoint:
        raise LoginRequired(
            "The identity provider has no sign-in by device.", next_step="run `berth login --browser` in a terminal"
        )
    parameters = {"client_id": oidc.client_id, "scope": " ".join(oidc.scopes), **_optional(oidc, "audience", "resource")}
    started = _accepted(_form(oidc, endpoint, parameters), "refuses the sign-in")
    uri = started.get("verification_uri") or started.get("verification_url")
    tell(f"To sign in, open {uri} and enter the code {started['user_code']}.")
    login = _poll(oidc, provider, started, min(float(started.get("expires_in", timeout)), timeout))
    with _private_file.lock(store_path(context)):
        _save(context, login)
    return login.token


def _poll(oidc: Oidc, provider: dict[str, Any], started: dict[str, Any], life: float) -> StoredLogin:
    interval = min(max(float(started.get("interval") or 5), 1.0), 60.0)
    end = time.monotonic() + life
    grant = {"grant_type": _DEVICE_GRANT, "device_code": started["device_code"]}
    while time.monotonic() + interval < end:
        time.sleep(interval)
        try:
            reply = _token_request(oidc, provider, grant)
        except Unreachable:
            interval += _SLOW_DOWN
            continue
        refusal = reply.get("error")
        if refusal is None:
            return _login_of(oidc, reply)
        if refusal == "slow_down":
            interval += _SLOW_DOWN
        elif refusal != "authorization_pending":
            raise LoginRequired(f"The sign-in was refused ({refusal}).", next_step=_LOGIN)
    raise LoginRequired("Nobody signed in in time.", next_step=_LOGIN)


def _usable(context: str, oidc: Oidc) -> StoredLogin:
    login = _load(context)
    if login is None or not login.is_of(oidc):
        raise LoginRequired(f"You are not signed in at {oidc.issuer}.", next_step=_LOGIN)
    return login


def _load(context: str) -> StoredLogin | None:
    path = store_path(context)
    text = _private_file.read_secret(path)
    if text is None:
        return None
    try:
        fields = json.loads(text, object_hook=_hide)
        refresh = fields.get("refresh_token")
        return StoredLogin(
            issuer=fields["issuer"],
            client_id=fields["client_id"],
            token=fields["token"],
            refresh_token=refresh,
            obtained_at=int(fields["obtained_at"]),
            expires_at=int(fields["expires_at"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        # The parser's error could quote a token.
        raise LoginRequired(f"{path} is damaged.", next_step="sign in again with `berth login`") from None


def _save(context: str, login: StoredLogin) -> None:
    fields = {key: value for key, value in vars(login).items() if value is not None}
    _private_file.write(store_path(context), Secret(json.dumps(fields)))


def _renew(context: str, oidc: Oidc, login: StoredLogin) -> StoredLogin:
    if login.refresh_token is None:
        raise LoginRequired(
            "The sign-in has expired, and the provider gave no refresh token.", next_step="run `berth login`"
        )
    grant = {"grant_type": "refresh_token", "refresh_token": login.refresh_token}
    reply = _token_request(oidc, _discover(oidc), grant)
    if reply.get("error") is not None:
        raise LoginRequired(f"The sign-in has ended ({reply['error']}).", next_step="run `berth login`")
    renewed = _login_of(oidc, reply)
    if renewed.refresh_token is None:
        # A provider without rotation keeps the old one valid.
        renewed = dataclasses.replace(renewed, refresh_token=login.refresh_token)
    _save(context, renewed)
    return renewed


def _login_of(oidc: Oidc, reply: dict[str, Any]) -> StoredLogin:
    token = reply.get(oidc.token)
    if not isinstance(token, Secret) or not token:
        raise CredentialError(
            f"The identity provider returned no {oidc.token}.",
            next_step="check the scopes and `--oidc-token` of the context: `berth context show`",
        )
    now = int(time.time())
    lifetime = int(max(float(reply.get("expires_in") or _DEFAULT_LIFETIME), 0))
    return StoredLogin(oidc.issuer, oidc.client_id, token, reply.get("refresh_token"), now, now + lifetime)


def _token_request(oidc: Oidc, provider: dict[str, Any], grant: dict[str, str]) -> dict[str, Any]:
    return _form(oidc, provider["token_endpoint"], {"client_id": oidc.client_id, **grant, **_optional(oidc, "resource")})


def _optional(oidc: Oidc, *names: str) -> dict[str, str]:
    return {name: getattr(oidc, name) for name in names if getattr(oidc, name)}


def _accepted(reply: dict[str, Any], what: str) -> dict[str, Any]:
    if reply.get("error") is not None:
        raise LoginRequired(f"The identity provider {what} ({reply['error']}).", next_step=_LOGIN)
    return reply


def _discover(oidc: Oidc) -> dict[str, Any]:
    """The provider's document, whose endpoints are all as protected as the issuer."""
    document = _request(oidc, oidc.issuer.rstrip("/") + "/.well-known/openid-configuration", None)
    if document.get("issuer") != oidc.issuer or not isinstance(document.get("token_endpoint"), str):
        raise ConfigurationError(
            f"{oidc.issuer} has no discovery document of this issuer.", next_step="correct the issuer of the context"
        )
    return document


def _form(oidc: Oidc, endpoint: str, parameters: dict[str, str]) -> dict[str, Any]:
    return _request(oidc, endpoint, Secret(urllib.parse.urlencode(parameters)))


def _request(oidc: Oidc, url: str, form: Secret | None) -> dict[str, Any]:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        raise ConfigurationError(f"{url} of the identity provider is not https.", next_step="use a provider with TLS")
    try:
        context = ssl.create_default_context(cafile=oidc.ca) if parts.scheme == "https" else None
        request = urllib.request.Request(
            url, None if form is None else form.encode(), {"accept": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=_REQUEST_TIMEOUT, context=context) as reply:
            return _json(url, reply.read(_MAX_RESPONSE_BYTES))
    except urllib.error.HTTPError as error:
        # RFC 6749, section 5.2: a refusal is JSON with status 400 or 401.
        if error.code in (400, 401):
            return _json(url, error.read(_MAX_RESPONSE_BYTES))
        raise Unreachable(f"{url} answers with HTTP status {error.code}.", next_step=_CHECK_PROVIDER) from None
    except OSError as error:
        raise Unreachable(f"{parts.netloc} cannot be reached: {error}.", next_step=_CHECK_PROVIDER) from None


def _hide(fields: dict[str, Any]) -> dict[str, Any]:
    """Tokens as secrets from the first moment, so that no traceback shows them."""
    for name in _SECRETS.intersection(fields):
        if fields[name] is not None:
            fields[name] = Secret(fields[name])
    return fields


def _json(url: str, body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body, object_hook=_hide)
        if isinstance(document, dict):
            return document
    except ValueError:
        pass
    raise Unreachable(f"{url} answers with something other than JSON.", next_step=_CHECK_PROVIDER)

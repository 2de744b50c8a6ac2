"""The sign-in of a context: stored and renewed like that of ``berth login``, or made by the device flow."""

from __future__ import annotations

import dataclasses
import json
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from . import _http, _private_file
from ._secret import Secret
from ._settings import Oidc, config_dir
from .errors import BerthError, ConfigurationError, CredentialError, LoginRequired, Unreachable

_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_DEFAULT_LIFETIME = 300.0
_SLOW_DOWN = 5.0
_LOGIN = "run `berth login`, or connect in a terminal or notebook, which can sign in"
_CHECK_CONTEXT = "check the issuer, the scopes and `--oidc-token` of the context: `berth context show`"


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
            # The provider does not answer now, and the token is still valid.
            if login.is_valid():
                return login.token
            raise


def sign_in(context: str, oidc: Oidc, show: Callable[[str], None], timeout: float = 600.0) -> Secret:
    """Signs in with a code on another device (RFC 8628), and stores the tokens."""
    provider = _discover(oidc)
    endpoint = provider.get("device_authorization_endpoint")
    if not isinstance(endpoint, str):
        raise LoginRequired(
            "The identity provider has no sign-in by device.", next_step="run `berth login --browser` in a terminal"
        )
    parameters = {"client_id": oidc.client_id, "scope": " ".join(oidc.scopes), **_optional(oidc, "audience", "resource")}
    started = _accepted(_form(oidc, endpoint, parameters), "refuses the sign-in")
    uri = _required(started, "verification_uri", "verification_url")
    code, device = _required(started, "user_code"), _required(started, "device_code")
    show(f"To sign in, open {uri} and enter the code {code}.")
    interval = min(max(_positive(started, "interval", 5.0), 1.0), 60.0)
    login = _poll(oidc, provider, device, interval, min(_positive(started, "expires_in", timeout), timeout))
    with _private_file.lock(store_path(context)):
        _save(context, login)
    return login.token


def _poll(oidc: Oidc, provider: dict[str, Any], device: str, interval: float, life: float) -> StoredLogin:
    end = time.monotonic() + life
    grant = {"grant_type": _DEVICE_GRANT, "device_code": device}
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
            raise LoginRequired(f"The sign-in was refused ({_reason(reply)}).", next_step=_LOGIN)
    raise LoginRequired("The sign-in was not completed in time.", next_step=_LOGIN)


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
    login = _parse(text)
    if login is None:
        raise LoginRequired(f"{path} is damaged.", next_step="sign in again with `berth login`")
    return login


def _parse(text: Secret) -> StoredLogin | None:
    """The fields of a file; ``None`` if it is damaged. An error raised here would have tokens in its frame."""
    fields = _http.parse(text)
    if fields is None:
        return None
    try:
        login = StoredLogin(
            issuer=fields["issuer"],
            client_id=fields["client_id"],
            token=fields["token"],
            refresh_token=fields.get("refresh_token"),
            obtained_at=int(fields["obtained_at"]),
            expires_at=int(fields["expires_at"]),
        )
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    return login if login.token and login.token.isascii() else None


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
        raise LoginRequired(f"The sign-in has ended ({_reason(reply)}).", next_step="run `berth login`")
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
            next_step=_CHECK_CONTEXT,
        )
    now = int(time.time())
    lifetime = int(_positive(reply, "expires_in", _DEFAULT_LIFETIME))
    return StoredLogin(oidc.issuer, oidc.client_id, token, reply.get("refresh_token"), now, now + lifetime)


def _token_request(oidc: Oidc, provider: dict[str, Any], grant: dict[str, str]) -> dict[str, Any]:
    return _form(oidc, provider["token_endpoint"], {"client_id": oidc.client_id, **grant, **_optional(oidc, "resource")})


def _optional(oidc: Oidc, *names: str) -> dict[str, str]:
    return {name: getattr(oidc, name) for name in names if getattr(oidc, name)}


def _accepted(reply: dict[str, Any], what: str) -> dict[str, Any]:
    if reply.get("error") is not None:
        raise LoginRequired(f"The identity provider {what} ({_reason(reply)}).", next_step=_LOGIN)
    return reply


def _reason(reply: dict[str, Any]) -> str:
    """The code of a refusal, as a short text."""
    return str(reply["error"])[:100]


def _discover(oidc: Oidc) -> dict[str, Any]:
    """The provider's document, whose endpoints are all as protected as the issuer."""
    document = _http.request(oidc.issuer.rstrip("/") + "/.well-known/openid-configuration", None, oidc.ca)
    if document.get("issuer") != oidc.issuer or not isinstance(document.get("token_endpoint"), str):
        raise ConfigurationError(
            f"{oidc.issuer} has no discovery document of this issuer.", next_step="correct the issuer of the context"
        )
    return document


def _form(oidc: Oidc, endpoint: str, parameters: dict[str, str]) -> dict[str, Any]:
    return _http.request(endpoint, Secret(urllib.parse.urlencode(parameters)), oidc.ca)


def _required(reply: dict[str, Any], *names: str) -> str:
    """The first of these fields that is text."""
    for name in names:
        if isinstance(reply.get(name), str) and reply[name]:
            text: str = reply[name]
            return text
    raise CredentialError(f"The identity provider returned no {names[0]}.", next_step=_CHECK_CONTEXT)


def _positive(reply: dict[str, Any], name: str, default: float) -> float:
    """A number of seconds; the default where the provider gives none that can be used."""
    try:
        value = float(reply.get(name) or default)
    except (TypeError, ValueError, OverflowError):
        return default
    return value if 0 < value < float("inf") else default

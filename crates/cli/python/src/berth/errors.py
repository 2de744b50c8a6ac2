"""Errors of this package. Each has a ``reason`` and the ``next_step``, and shows both.

The reasons of Berth's own errors are those of docs/errors.md. Errors of queries are PySpark's.
"""

from __future__ import annotations

from typing import Any


class BerthError(Exception):
    """Base of all errors of this package."""

    #: The reason where none is named.
    default_reason = "CLIENT"

    def __init__(
        self, text: str, *, next_step: str, reason: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(text)
        #: What happened.
        self.text = text
        #: What to do about it.
        self.next_step = next_step
        #: A fixed word for programs.
        self.reason = reason or self.default_reason
        #: Seconds after which the same call can succeed, if Berth names them.
        self.retry_after = retry_after

    @property
    def is_temporary(self) -> bool:
        """Whether the same call can succeed later without a change."""
        return isinstance(self, Unreachable) or self.retry_after is not None or self.reason in _TEMPORARY

    def __str__(self) -> str:
        end = "" if self.text.endswith((".", "!", "?")) else "."
        return f"{self.text}{end} Next: {self.next_step}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_restore, (type(self), self.text, self.next_step, self.reason, self.retry_after))


def _restore(of: type[BerthError], text: str, next_step: str, reason: str, after: float | None) -> BerthError:
    return of(text, next_step=next_step, reason=reason, retry_after=after)


class ConfigurationError(BerthError, ValueError):
    """A setting or an argument is missing or invalid."""

    default_reason = "CONFIGURATION"


class ClientError(BerthError, ImportError):
    """PySpark or gRPC is missing here, or is a release that this package cannot use."""

    default_reason = "CLIENT_VERSION"


class CredentialError(BerthError):
    """There is no credential, or Berth does not accept it."""

    default_reason = "CREDENTIAL_MISSING"


class LoginRequired(CredentialError):
    """There is no sign-in, or it has ended."""

    default_reason = "LOGIN_REQUIRED"


class PermissionDenied(BerthError, PermissionError):
    """The object belongs to another account, or does not exist."""

    default_reason = "NOT_AUTHORIZED"


class SessionError(BerthError):
    """The session cannot be used."""


class SessionClosed(SessionError):
    """The session is closed."""

    default_reason = "SESSION_CLOSED"


class SessionFailed(SessionError):
    """The session failed."""

    default_reason = "SESSION_FAILED"


class SessionMismatch(SessionError):
    """A live session has the name, and other properties than the arguments."""

    default_reason = "SESSION_DIFFERS"


class StartTimeout(SessionError, TimeoutError):
    """The session did not start in time."""

    default_reason = "START_TIMEOUT"


class ClusterUnavailable(BerthError):
    """The cluster or catalog accepts no sessions."""

    default_reason = "CLUSTER_NOT_ACTIVE"


class QuotaExceeded(BerthError):
    """A quota or a rate limit is exceeded."""

    default_reason = "QUOTA_EXCEEDED"


class Unreachable(BerthError, ConnectionError):
    """Berth, or the identity provider, does not answer; the same call can succeed later."""

    default_reason = "UNREACHABLE"


class ServerError(BerthError):
    """Any other error of Berth."""

    default_reason = "INTERNAL"


#: Refusals that end by themselves, even if Berth does not name a time.
_TEMPORARY = frozenset({"RATE_LIMITED", "TOO_MANY_WAITING"})

_NEW_SESSION = "create another: berth.connect() without session=; with name= it is found or created"
_TRY_AGAIN = "try again in a few seconds"
_NEW_TOKEN = "call berth.connect() again; it issues a new session token"

#: Reason = class and next step.
BY_REASON: dict[str, tuple[type[BerthError], str]] = {
    "CALLER_UNKNOWN": (
        CredentialError,
        "check the credential: credential=, BERTH_KEY, BERTH_TOKEN or the context; `berth login` signs in again",
    ),
    "TOKEN_MALFORMED": (CredentialError, _NEW_TOKEN),
    "TOKEN_EXPIRED": (CredentialError, _NEW_TOKEN),
    "TOKEN_REVOKED": (CredentialError, _NEW_TOKEN),
    "TOKEN_INVALID": (CredentialError, _NEW_TOKEN),
    "NOT_AUTHORIZED": (PermissionDenied, "check the name or id, and which account you use: `berth whoami`"),
    "ORG_DISABLED": (PermissionDenied, "ask the administrator of your organization"),
    "INVALID_ARGUMENT": (ConfigurationError, "correct the named argument"),
    "CLUSTER_NOT_ACTIVE": (ClusterUnavailable, "choose another cluster: `berth cluster list`"),
    "CATALOG_UNAVAILABLE": (
        ClusterUnavailable,
        "connect without catalog=, or test it: `berth catalog test NAME --cluster CLUSTER`",
    ),
    "SESSION_CLOSED": (SessionClosed, _NEW_SESSION),
    "SESSION_FAILED": (SessionFailed, "correct the cause, then " + _NEW_SESSION),
    "SESSION_WARMING": (Unreachable, _TRY_AGAIN),
    "COMPUTE_RELEASED": (SessionError, "nothing runs there; the next query starts its compute"),
    "BACKEND_UNAVAILABLE": (Unreachable, _TRY_AGAIN),
    "IN_USE": (ClusterUnavailable, "close the sessions that use it first"),
    "MANAGED_BY_CONFIG": (ConfigurationError, "change it in the configuration of session-manager"),
    "QUOTA_EXCEEDED": (
        QuotaExceeded,
        "close sessions that you no longer need (`berth session list`), or have the limit raised",
    ),
    "RATE_LIMITED": (QuotaExceeded, "wait for the seconds of retry_after, then try again"),
    "TOO_MANY_WAITING": (QuotaExceeded, _TRY_AGAIN),
    "REQUEST_ID_REUSED": (ServerError, _TRY_AGAIN),
    "ALREADY_EXISTS": (ConfigurationError, "choose another name"),
    "CONFLICT": (ServerError, _TRY_AGAIN),
    "CONTROL_PLANE_UNAVAILABLE": (Unreachable, _TRY_AGAIN),
    "UNKNOWN_METHOD": (
        ConfigurationError,
        "check the addresses: manager is session-manager's port 8081, issuer is token-issuer's port 8083",
    ),
    "INTERNAL": (ServerError, "tell your platform team the text and the time"),
}


def of_reason(reason: str, text: str, retry_after: float | None = None) -> BerthError:
    """The error of a reason of Berth."""
    kind, next_step = BY_REASON.get(reason, (ServerError, "see docs/errors.md for this reason"))
    return kind(text, next_step=next_step, reason=reason, retry_after=retry_after)

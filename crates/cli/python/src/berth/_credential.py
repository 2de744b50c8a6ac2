"""The credential for Berth's APIs: argument, environment, context, device sign-in, projected token."""

from __future__ import annotations

import http.client
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from . import _login
from ._secret import Secret
from ._settings import CredentialArgument, Oidc, Settings
from .errors import BerthError, ConfigurationError, CredentialError, LoginRequired, Unreachable

#: A projected service-account token of Kubernetes, whose audience is Berth. The token that each pod has by
#: default is for the API server, so it is never used.
PROJECTED_TOKEN = Path("/var/run/secrets/berth/token")
_MAX_BYTES = 48 * 1024
_VARIABLES = ("BERTH_KEY", "BERTH_TOKEN", "BERTH_KEY_FILE", "BERTH_TOKEN_FILE")


@dataclass(frozen=True)
class Credential:
    """Where the credential comes from; it is read again at each use."""

    #: The source for people, without the secret.
    source: str
    read: Callable[[], str]
    #: The sign-in by a person, where none is stored.
    sign_in: Callable[[Callable[[str], None]], str] | None = None

    def secret(self) -> Secret:
        """The key or token."""
        secret = Secret(self._text().strip())
        if not secret or len(secret) > _MAX_BYTES or not secret.isascii() or not secret.isprintable():
            raise CredentialError(
                f"The credential of {self.source} is empty, too long, or no plain text.",
                next_step="set it to a service-account key, or a token of your identity provider",
                reason="CREDENTIAL_INVALID",
            )
        return secret

    def _text(self) -> Secret:
        """What the source returns. The function of a program raises errors of its own, which can contain secrets."""
        try:
            text = self.read()
        except BerthError:
            raise
        except Exception as error:
            what = f"{self.source[0].upper()}{self.source[1:]} raised {type(error).__name__}."
            if isinstance(error, (OSError, http.client.HTTPException)):
                raise Unreachable(what, next_step="try again, or correct the cause, see the traceback") from error
            raise CredentialError(
                what, next_step="correct the cause, see the traceback", reason="CREDENTIAL_INVALID"
            ) from error
        if isinstance(text, str):
            return Secret(text)
        kind = type(text).__name__
        # It may be the key as bytes, and tracebacks can show variables.
        del text
        raise CredentialError(
            f"The credential of {self.source} is of type {kind}, not text.",
            next_step="return a service-account key, or a token of your identity provider, as str",
            reason="CREDENTIAL_INVALID",
        )

    def ensure(self, show: Callable[[str], None]) -> None:
        """Signs in, where no sign-in is stored and a person is present."""
        try:
            self.secret()
        except LoginRequired:
            if self.sign_in is None or not is_interactive():
                raise
            self.sign_in(show)


def is_interactive() -> bool:
    """Whether a person can read a code and sign in: a terminal, or a notebook that is not run as a batch."""
    if "ipykernel" in sys.modules:
        from IPython import get_ipython

        kernel = getattr(get_ipython(), "kernel", None)
        if kernel is not None:
            return bool(getattr(kernel, "_allow_stdin", False))
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def resolve(settings: Settings) -> Credential:
    """The credential in effect."""
    if settings.credential is not None:
        return _of_argument(settings.credential)
    found = _of_environment() or _of_context(settings)
    if found is not None:
        return found
    if PROJECTED_TOKEN.exists():
        return _of_file(PROJECTED_TOKEN)
    raise CredentialError(
        "There is no credential.",
        next_step="set BERTH_KEY to your service-account key or BERTH_TOKEN to a token of your identity provider, "
        "sign in with `berth login`, or give credential=",
    )


def _of_argument(credential: CredentialArgument) -> Credential:
    if callable(credential):
        return Credential("the function credential=", credential)
    if isinstance(credential, str):
        secret = Secret(credential)
        return Credential("credential=", lambda: secret)
    if not isinstance(credential, os.PathLike):
        raise ConfigurationError(
            f"credential= is of type {type(credential).__name__}.",
            next_step="give the key or token as str, its file as pathlib.Path, or a function that returns it",
        )
    return _of_file(Path(credential))


def _of_environment() -> Credential | None:
    names = [name for name in _VARIABLES if os.environ.get(name)]
    if len(names) > 1:
        raise ConfigurationError(
            f"The environment has several credentials: {', '.join(names)}.",
            next_step="use one of them, and unset the others",
            reason="CREDENTIAL_AMBIGUOUS",
        )
    if not names:
        return None
    [name] = names
    if name.endswith("_FILE"):
        return _of_file(Path(os.environ[name]))
    # Read again, so that a variable that is renewed has an effect.
    return Credential(name, lambda: os.environ.get(name, ""))


def _of_context(settings: Settings) -> Credential | None:
    context = settings.context
    file = context.key_file or context.token_file
    if file is not None:
        return _of_file(file)
    if context.oidc is None:
        return None
    return _of_login(context.name, context.oidc)


def _of_login(name: str, oidc: Oidc) -> Credential:
    def read() -> str:
        try:
            return _login.current(name, oidc)
        except LoginRequired:
            # No person is present, but the platform issues a token for the pod.
            if PROJECTED_TOKEN.exists() and not is_interactive():
                return _read_file(PROJECTED_TOKEN)
            raise

    return Credential(
        f"the sign-in of context {name} at {oidc.issuer}", read, lambda show: _login.sign_in(name, oidc, show)
    )


def _of_file(path: Path) -> Credential:
    return Credential(str(path), lambda: _read_file(path))


def _read_file(path: Path) -> Secret:
    try:
        # A decoding error would contain the bytes. secret() rejects the replacements, which are not ASCII.
        return Secret(path.read_bytes().decode("utf-8", errors="replace"))
    except OSError as error:
        raise CredentialError(
            f"The credential file {path} cannot be read: {error.strerror}.",
            next_step="correct the path, or give another credential: BERTH_KEY, BERTH_TOKEN, `berth login`",
        ) from None

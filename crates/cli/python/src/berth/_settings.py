"""Settings in effect, as the ``berth`` command finds them: argument, environment, context, default."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Union
from urllib.parse import urlsplit

from ._channel import Security, check_plaintext
from .errors import ConfigurationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_MANAGER = "http://127.0.0.1:8081"
DEFAULT_ISSUER = "http://127.0.0.1:8083"
_FALSE = ("", "0", "n", "no", "f", "false", "off")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}\Z")
_TEXT = ("manager", "issuer", "ca", "key_file", "token_file")

#: A key or token, a file that contains one, or a function that returns one.
CredentialArgument = Union[str, "os.PathLike[str]", Callable[[], str]]


@dataclass(frozen=True)
class Oidc:
    """The identity provider of a context."""

    issuer: str
    client_id: str
    scopes: tuple[str, ...] = ("openid", "offline_access")
    audience: str | None = None
    resource: str | None = None
    #: ``access_token`` or ``id_token``.
    token: str = "access_token"
    ca: Path | None = None


@dataclass(frozen=True)
class Context:
    """A context of the file that ``berth context set`` writes. It contains no secret."""

    name: str = ""
    manager: str | None = None
    issuer: str | None = None
    ca: Path | None = None
    insecure: bool = False
    key_file: Path | None = None
    token_file: Path | None = None
    oidc: Oidc | None = None


@dataclass(frozen=True)
class Settings:
    """Addresses of Berth, how to connect to them, and where the credential comes from."""

    manager: str
    issuer: str
    ca: Path | None
    insecure: bool
    context: Context
    credential: CredentialArgument | None = field(default=None, repr=False)

    def security(self, address: str) -> Security:
        """How the API at ``address`` is protected."""
        return Security(address.startswith("https://"), self.ca, self.insecure)


def config_dir() -> Path:
    """The folder of settings of the ``berth`` command."""
    named = os.environ.get("BERTH_CONFIG_DIR")
    if named:
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA") or Path.home()) / "berth"
    if sys.platform == "darwin":
        return Path.home() / "Library/Application Support/berth"
    base = os.environ.get("XDG_CONFIG_HOME", "")
    # By the specification of the variable other paths are ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".config") / "berth"


def resolve(
    context: str | None = None,
    manager: str | None = None,
    issuer: str | None = None,
    ca: str | os.PathLike[str] | None = None,
    insecure: bool | None = None,
    credential: CredentialArgument | None = None,
) -> Settings:
    """The settings in effect."""
    chosen = load_context(context or os.environ.get("BERTH_CONTEXT") or None)
    variable = os.environ.get("BERTH_CA")
    authority = Path(ca) if ca is not None else Path(variable) if variable else chosen.ca
    if insecure is None:
        insecure = os.environ.get("BERTH_INSECURE", "").lower() not in _FALSE or chosen.insecure
    settings = Settings(
        manager=manager or os.environ.get("BERTH_MANAGER") or chosen.manager or DEFAULT_MANAGER,
        issuer=issuer or os.environ.get("BERTH_ISSUER") or chosen.issuer or DEFAULT_ISSUER,
        ca=authority,
        insecure=insecure,
        context=chosen,
        credential=credential,
    )
    for name in ("manager", "issuer"):
        check_address(name, getattr(settings, name), settings.insecure)
    return settings


def check_address(name: str, address: str, insecure: bool) -> None:
    """Rejects an address that has no host, or would send the credential in plaintext."""
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port and parts.path in ("", "/")
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(
            f"{name} is {address!r}, which is not an address like https://berth.example.org:8081.",
            next_step=f"set {name}= (BERTH_{name.upper()}) with scheme, host and port",
        )
    if parts.scheme == "http":
        check_plaintext(address, parts.hostname or "", insecure)


def load_context(name: str | None) -> Context:
    """The context of this name, else the current one, else an empty one."""
    named = os.environ.get("BERTH_CONFIG")
    try:
        path = Path(named) if named else config_dir() / "config.toml"
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = ""
    except (OSError, RuntimeError) as error:
        # As in a container without a home.
        if named:
            raise ConfigurationError(
                f"{named} cannot be read: {error}.", next_step="correct BERTH_CONFIG, or unset it"
            ) from None
        text = ""
    if not text:
        if name:
            raise _unknown(name, [])
        return Context()
    return _parse(path, text, name)


def _parse(path: Path, text: str, name: str | None) -> Context:
    try:
        document = tomllib.loads(text)
        contexts = document.get("contexts", {})
        name = name or document.get("current")
        if name is None:
            return Context()
        if not isinstance(name, str):
            raise TypeError("current is not text")
        if name not in contexts:
            raise _unknown(name, list(contexts))
        if not _NAME.match(name):
            raise ValueError(f"{name!r} cannot name a context")
        return _context(name, contexts[name])
    except ConfigurationError:
        raise
    except (tomllib.TOMLDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{path} is not a file of contexts: {error}.", next_step="correct the file, or use `berth context set`"
        ) from None


def _unknown(name: str, known: list[str]) -> ConfigurationError:
    there = f"there are {', '.join(sorted(known))}" if known else "there is none"
    return ConfigurationError(
        f"There is no context {name!r}: {there}.",
        next_step="choose another with context= (BERTH_CONTEXT), or create it with `berth context set`",
    )


def _context(name: str, table: dict[str, Any]) -> Context:
    """Fields of later releases are ignored."""
    for key in _TEXT:
        if not isinstance(table.get(key, ""), str):
            raise TypeError(f"{key} of context {name} is not text")
    file = {key: Path(table[key]) if table.get(key) else None for key in ("ca", "key_file", "token_file")}
    oidc = table.get("oidc")
    return Context(
        name=name,
        manager=table.get("manager"),
        issuer=table.get("issuer"),
        insecure=bool(table.get("insecure", False)),
        oidc=None if oidc is None else _oidc(oidc),
        **file,
    )


def _oidc(table: dict[str, Any]) -> Oidc:
    ca = table.get("ca")
    return Oidc(
        issuer=str(table["issuer"]),
        client_id=str(table["client_id"]),
        scopes=tuple(table.get("scopes", ("openid", "offline_access"))),
        audience=table.get("audience"),
        resource=table.get("resource"),
        token=table.get("token", "access_token"),
        ca=Path(ca) if ca else None,
    )

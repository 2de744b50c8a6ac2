"""Sessions of Berth in Python.

    import berth

    spark = berth.connect(cluster="local", name="etl")
    spark.sql("SHOW TABLES").show()
    spark.berth.close()

In a notebook: ``%load_ext berth``, then ``%berth connect`` and ``%%sql``. docs/python.md has the rest.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from ._connect import connect, session
from ._session import Session, session_of
from .errors import (
    BerthError,
    ClientError,
    ClusterUnavailable,
    ConfigurationError,
    CredentialError,
    LoginRequired,
    PermissionDenied,
    QuotaExceeded,
    ServerError,
    SessionClosed,
    SessionError,
    SessionFailed,
    SessionMismatch,
    StartTimeout,
    Unreachable,
)

__all__ = [
    "BerthError",
    "ClientError",
    "ClusterUnavailable",
    "ConfigurationError",
    "CredentialError",
    "LoginRequired",
    "PermissionDenied",
    "QuotaExceeded",
    "ServerError",
    "Session",
    "SessionClosed",
    "SessionError",
    "SessionFailed",
    "SessionMismatch",
    "StartTimeout",
    "Unreachable",
    "connect",
    "load_ipython_extension",
    "session",
    "session_of",
    "unload_ipython_extension",
]

try:
    __version__ = importlib.metadata.version("berth")
except importlib.metadata.PackageNotFoundError:
    # From the source tree.
    __version__ = "0"


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext berth``."""
    from . import _notebook

    _notebook.load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """``%unload_ext berth``."""
    from . import _notebook

    _notebook.unload(shell)

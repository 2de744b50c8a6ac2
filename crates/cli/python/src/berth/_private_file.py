"""Files of one user, in the forms of the ``berth`` command: mode 0600, replaced as a whole, one lock."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Iterator

from ._secret import Secret
from .errors import ConfigurationError, CredentialError

LOCK_TIMEOUT = 60.0
_LOCK_POLL_INTERVAL = 0.05


def read_secret(path: Path) -> Secret | None:
    """The text of a file with a secret; ``None`` if there is none. Fails if other users can read it."""
    try:
        mode = path.stat().st_mode
        if sys.platform != "win32" and mode & 0o077:
            raise CredentialError(
                f"{path} holds a secret and is open to other users.",
                next_step=f"chmod 600 {path}, or sign in again",
                reason="CREDENTIAL_EXPOSED",
            )
        # A decoding error would contain the bytes; a text with replacements is no JSON of a sign-in.
        return Secret(path.read_bytes().decode("utf-8", errors="replace"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CredentialError(
            f"{path} cannot be read: {error.strerror}.", next_step="correct its owner and mode, or sign in again"
        ) from None


def write(path: Path, text: str) -> None:
    """Replaces a file as a whole; readers see the old text or the new one."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ConfigurationError(
            f"{path} cannot be written: {error.strerror}.", next_step="make its folder writable (BERTH_CONFIG_DIR)"
        ) from None


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """The lock beside a file, which the ``berth`` command takes too."""
    beside = path.with_suffix(".lock")
    try:
        beside.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"{beside} cannot be opened: {error.strerror}.", next_step="make its folder writable (BERTH_CONFIG_DIR)"
        ) from None
    with os.fdopen(descriptor, "w") as file:
        # Closing the file releases the lock.
        if sys.platform != "win32":
            _wait_for_lock(file.fileno(), beside)
        yield


def _wait_for_lock(descriptor: int, path: Path) -> None:
    import fcntl

    end = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise ConfigurationError(
                    f"Another berth command holds {path} for more than a minute.", next_step="end it, and try again"
                ) from None
            time.sleep(_LOCK_POLL_INTERVAL)

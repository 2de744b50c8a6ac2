"""Text that no representation shows: keys and tokens, and headers that contain them."""

from __future__ import annotations

from typing import Any, NoReturn

HIDDEN = "<secret>"


class Secret(str):
    """A string whose ``repr`` is hidden, so that tracebacks with local variables do not show it.

    gRPC takes it like any string. It cannot be pickled, so it does not travel inside a UDF.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return HIDDEN

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret of berth is not pickled: pass the name of a session, and connect there")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self


def bearer(secret: str) -> tuple[str, Secret]:
    """The metadata that carries a key or token."""
    return ("authorization", Secret("Bearer " + secret))


def hidden(value: Any) -> Any:
    """Text or bytes as a secret; anything else as it is."""
    if isinstance(value, bytes):
        return Secret(value.decode("utf-8", errors="replace"))
    return Secret(value) if isinstance(value, str) else value

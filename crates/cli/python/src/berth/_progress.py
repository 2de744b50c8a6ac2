"""Progress of what takes a while: a moving line on a terminal or in a notebook, else one line per change."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any, TextIO

_TICK = 0.2
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Progress:
    """Shows the latest text with the seconds since the start, until it is closed. Usable from any thread."""

    def __init__(self, enabled: bool = True) -> None:
        self._line = _line() if enabled else _Silent()
        self._text = ""
        self._begun = time.monotonic()
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._begun

    def show(self, text: str) -> None:
        """The present phase."""
        with self._lock:
            changed, self._text = text != self._text, text
            if changed:
                self._line.changed(text, self.seconds)
            if self._line.moves and self._thread is None:
                self._thread = threading.Thread(target=self._move, name="berth-progress", daemon=True)
                self._thread.start()

    def note(self, text: str) -> None:
        """A line that stays."""
        with self._lock:
            self._line.note(text)

    def close(self, text: str = "") -> None:
        """Removes the moving line, and leaves ``text`` in its place."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(timeout=2)
        with self._lock:
            self._line.end(text)

    def _move(self) -> None:
        while not self._end.wait(_TICK):
            with self._lock:
                self._line.tick(self._text, self.seconds)


class _Silent:
    moves = False

    def changed(self, text: str, seconds: float) -> None: ...

    def tick(self, text: str, seconds: float) -> None: ...

    def note(self, text: str) -> None: ...

    def end(self, text: str) -> None: ...


class _Plain(_Silent):
    """One line per change, for logs."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()

    def changed(self, text: str, seconds: float) -> None:
        self._write(f"berth: {text}\n")

    def note(self, text: str) -> None:
        self._write(f"berth: {text}\n")

    def end(self, text: str) -> None:
        if text:
            self._write(f"berth: {text}\n")


class _Terminal(_Plain):
    moves = True
    _at = 0

    def changed(self, text: str, seconds: float) -> None:
        self.tick(text, seconds)

    def tick(self, text: str, seconds: float) -> None:
        self._at += 1
        self._write(f"\r\033[K{_FRAMES[self._at % len(_FRAMES)]} berth: {text} ({seconds:.0f} s)")

    def note(self, text: str) -> None:
        self._write(f"\r\033[Kberth: {text}\n")

    def end(self, text: str) -> None:
        self._write(f"\r\033[Kberth: {text}\n" if text else "\r\033[K")


class _Notebook(_Silent):
    """One output that is replaced."""

    moves = True

    def __init__(self, display: Any) -> None:
        self._display = display
        self._handle: Any = None

    def _replace(self, text: str) -> None:
        data = {"text/plain": text}
        if self._handle is None:
            self._handle = self._display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    def changed(self, text: str, seconds: float) -> None:
        self.tick(text, seconds)

    def tick(self, text: str, seconds: float) -> None:
        self._replace(f"berth: {text} ({seconds:.0f} s)")

    def note(self, text: str) -> None:
        self._display({"text/plain": f"berth: {text}"}, raw=True)

    def end(self, text: str) -> None:
        if text or self._handle is not None:
            self._replace(f"berth: {text}" if text else "")


def _line() -> _Silent:
    if "ipykernel" in sys.modules:
        from IPython import get_ipython
        from IPython.display import display

        # A program that only imports ipykernel has no notebook.
        if type(get_ipython()).__name__ == "ZMQInteractiveShell":
            return _Notebook(display)
    # Bound now: notebooks and tests replace it.
    out = sys.stderr
    if out is None:
        return _Silent()
    return _Terminal(out) if out.isatty() else _Plain(out)

"""The end of an attempt's log and the count of its lines, read from the file while the step still writes to it."""

import threading
from collections import deque
from pathlib import Path

TAIL_LINES = 200
TAIL_BYTES = 64 * 1024
# A longer line is cut: one line must not push all others out.
LONGEST_LINE_BYTES = 4096
READ_BYTES = 1 << 20


class AttemptLog:
    """A log file that grows. May be read from several threads."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._offset = 0
        self._line = b""
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.lines = 0

    def read(self) -> None:
        """Take in what was written since; the line that is being written waits until it is whole."""
        with self._lock:
            self._read()

    def finish(self) -> None:
        """Take in all that is left, also a last line without its end."""
        with self._lock:
            self._read()
            if self._line:
                self._take([self._line])
                self._line = b""

    def tail(self) -> str:
        """The last lines, at most TAIL_LINES and TAIL_BYTES of them, joined by newlines."""
        with self._lock:
            kept: list[str] = []
            room = TAIL_BYTES
            for line in reversed(self._tail):
                room -= len(line.encode()) + 1
                if room < 0:
                    break
                kept.append(line)
        return "\n".join(reversed(kept))

    def _read(self) -> None:
        try:
            with self._file.open("rb") as stream:
                # Not to the end: a step that prints without pause would keep this here.
                size = stream.seek(0, 2)
                if size < self._offset:
                    # Somebody emptied the file.
                    self._offset = 0
                stream.seek(self._offset)
                while self._offset < size and (block := stream.read(min(READ_BYTES, size - self._offset))):
                    self._offset += len(block)
                    *whole, rest = (self._line + block).split(b"\n")
                    self._take(whole)
                    self._line = _shortened(rest)
        except FileNotFoundError:
            return

    def _take(self, lines: list[bytes]) -> None:
        self.lines += len(lines)
        self._tail.extend(_as_text(line) for line in lines[-TAIL_LINES:])


def _shortened(line: bytes) -> bytes:
    """A line that is not whole yet: of a progress line only what was drawn last, of a long one its beginning."""
    # A final \r may be the first half of an end of line.
    drawn = line[line.rfind(b"\r", 0, len(line) - 1) + 1 :]
    return drawn[: LONGEST_LINE_BYTES + 1]


def _as_text(line: bytes) -> str:
    line = line.rstrip(b"\r")
    line = line[line.rfind(b"\r") + 1 :]
    # PostgreSQL takes no NUL in a text.
    text = line[:LONGEST_LINE_BYTES].decode("utf-8", errors="replace").replace("\x00", "")
    return text + "…" if len(line) > LONGEST_LINE_BYTES else text

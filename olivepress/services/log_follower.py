"""Shows the services' log files on the console as they grow, each line behind its service's name."""

import threading
from pathlib import Path

from rich.console import Console
from rich.text import Text

LOOK_EVERY_S = 0.3
COLOURS = ("cyan", "green", "magenta", "blue", "yellow")


class LogFollower:
    """Follows from the present end of each file; a context manager."""

    def __init__(self, log_files: dict[str, Path], console: Console, *, is_quiet: bool) -> None:
        self._console = console
        self._files = {} if is_quiet else log_files
        self._positions = {name: path.stat().st_size for name, path in self._files.items()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="log-follower", daemon=True)

    def __enter__(self) -> "LogFollower":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            for number, (name, path) in enumerate(self._files.items()):
                self._show(name, path, COLOURS[number % len(COLOURS)])

    def _show(self, name: str, path: Path, colour: str) -> None:
        with path.open("rb") as file:
            file.seek(self._positions[name])
            new = file.read()
        # A line that is still being written is shown when it is whole.
        end = new.rfind(b"\n") + 1
        self._positions[name] += end
        for line in new[:end].decode("utf-8", errors="replace").splitlines():
            self._console.print(Text(f"{name:9} ", style=colour) + Text(line), soft_wrap=True)

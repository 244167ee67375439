"""A double of ingest that does everything that a step must not do, each as some library might."""

import contextlib
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.doubles.orders import Orders, content_digest, result_of
from workers.steps.context import StepContext

# Calls connect of the C library, past Python's sockets: 192.0.2.3 port 8080 as a sockaddr_in.
NATIVE = """
import ctypes, socket
address = socket.AF_INET.to_bytes(2, "little") + (8080).to_bytes(2, "big") + bytes([192, 0, 2, 3]) + bytes(8)
ctypes.CDLL(None).connect(socket.socket(socket.AF_INET, socket.SOCK_STREAM).fileno(), address, len(address))
"""


def run(spec: dict[str, Any], context: StepContext) -> dict[str, Any]:
    """As tests.doubles.steps.ingest.run, and astray."""
    directory = Path(spec["path"])
    _connect()
    _write(directory.parent)
    return result_of(Orders.read(directory), content_digest(directory))


def _connect() -> None:
    with contextlib.suppress(OSError):
        socket.create_connection(("192.0.2.1", 80), timeout=5)
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as six:
        six.connect(("2001:db8::1", 443))
    with contextlib.suppress(OSError):
        socket.getaddrinfo("telemetry.example.invalid", 443)
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packets:
        packets.sendto(b"<14>converted", ("192.0.2.2", 514))
    subprocess.run([sys.executable, "-c", NATIVE], check=True)
    with contextlib.suppress(OSError), socket.socket() as to_all:
        to_all.bind(("0.0.0.0", 18999))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        socket.create_connection(listener.getsockname()).close()


def _write(root: Path) -> None:
    """As one whose library read HOME, TMPDIR and the working directory when the forkserver imported it."""
    (root / "home" / ".cache").mkdir()
    (root / "home" / ".cache").rmdir()
    for place in ("tmp", "work", "data"):
        (root / place / "strayed").write_text("x")
        (root / place / "strayed").unlink()

"""A connection to a server that breaks: a proxy that passes so many bytes of an answer and then drops the line."""

import contextlib
import random
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Link:
    """The proxy; `url` is what a client is given."""

    url: str
    passes_bytes: range
    """Each connection passes a random number of bytes of these, then is dropped; an empty range: it never is."""
    random: random.Random
    drops: int = 0
    carried_bytes: int = 0
    delay_s: float = 0.0
    """Before each block of up to 64 KiB that is passed: a slow line."""
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def broken_link(server_url: str, passes_bytes: range, *, seed: int = 1, delay_s: float = 0.0) -> Iterator[Link]:
    """A link to this server that breaks."""
    place = urlsplit(server_url)
    pause = threading.Event()

    class Carry(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with link.lock:
                left = link.random.choice(link.passes_bytes) if link.passes_bytes else None
            with contextlib.suppress(OSError), socket.create_connection((place.hostname, place.port)) as server:
                back = threading.Thread(target=self._upwards, args=(server,))
                back.start()
                self._downwards(server, left)
                for each in (self.request, server):
                    with contextlib.suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)
                back.join()

        def _upwards(self, server: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while block := self.request.recv(65536):
                    server.sendall(block)

        def _downwards(self, server: socket.socket, left: int | None) -> None:
            while block := server.recv(65536 if left is None else min(65536, left)):
                if link.delay_s:
                    pause.wait(link.delay_s)
                self.request.sendall(block)
                with link.lock:
                    link.carried_bytes += len(block)
                if left is not None:
                    left -= len(block)
                    if left <= 0:
                        with link.lock:
                            link.drops += 1
                        return

    class Proxy(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

        def handle_error(self, *_: object) -> None: ...

    with Proxy(("127.0.0.1", 0), Carry) as proxy:
        link = Link(f"http://127.0.0.1:{proxy.server_address[1]}", passes_bytes, random.Random(seed), delay_s=delay_s)
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield link
        finally:
            pause.set()
            proxy.shutdown()
            thread.join()

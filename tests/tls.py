"""Certificates for tests, and a relay that speaks TLS before a server that cannot.

The wheels' PostgreSQL and Redis are built without TLS. The relay terminates it as the real servers do, PostgreSQL's
question whether TLS is wanted (SSLRequest) included, so a client's checks are the real ones.
"""

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trustme

# PostgreSQL's protocol, "SSLRequest": its length and the number 80877103.
SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
ANSWER_WITHIN_S = 20.0


@dataclass(frozen=True)
class Identity:
    """A server's certificate and key, and the authority that clients should trust."""

    certificate_file: Path
    key_file: Path
    authority_file: Path

    def context(self) -> ssl.SSLContext:
        """For the server's side."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate_file, self.key_file)
        return context


def make_identity(directory: Path, *names: str) -> Identity:
    """A new authority and a server's certificate by it for these host names and addresses."""
    directory.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    identity = Identity(directory / "server.crt", directory / "server.key", directory / "ca.crt")
    authority.cert_pem.write_to_path(str(identity.authority_file))
    issued = authority.issue_cert(*names)
    issued.private_key_pem.write_to_path(str(identity.key_file))
    identity.key_file.chmod(0o600)
    identity.certificate_file.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    return identity


class Relay:
    """Takes TLS connections on an address of this machine and passes on what they say in plain text to loopback."""

    def __init__(self, target_port: int, identity: Identity, *, asks_first: bool, listen: str = "127.0.0.1") -> None:
        self.port = 0
        self._listen = listen
        self.password = ""
        self.accepted = 0
        """Connections whose TLS was agreed."""
        self._target_port, self._context, self._asks_first = target_port, identity.context(), asks_first
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tls-relay")

    def start(self) -> None:
        """Listen on a free port, which is `port` from now on."""
        self._thread.start()
        assert self._ready.wait(ANSWER_WITHIN_S), "the relay did not start"

    def stop(self) -> None:
        """Close all connections."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(ANSWER_WITHIN_S)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(
            self._pass_on, self._listen, 0, ssl=None if self._asks_first else self._context
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Clients that refuse the certificate, or go, are what the tests are about.
        with suppress(OSError, ssl.SSLError, asyncio.IncompleteReadError, asyncio.CancelledError):
            try:
                _notice_dead_peers(writer.get_extra_info("socket"))
                if self._asks_first:
                    if await reader.readexactly(len(SSL_REQUEST)) != SSL_REQUEST:
                        return
                    writer.write(b"S")
                    await writer.drain()
                    await writer.start_tls(self._context)
                self.accepted += 1
                onward_reader, onward = await asyncio.open_connection("127.0.0.1", self._target_port)
                await asyncio.gather(_copy(reader, onward), _copy(onward_reader, writer))
            finally:
                writer.close()


def _notice_dead_peers(connection: socket.socket) -> None:
    """As the servers do that are asked to (olivepress.database.sessions): a host that is cut off holds no locks."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 5), ("TCP_USER_TIMEOUT", 15_000)):
        # Not every system has each.
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    finally:
        writer.close()


@contextmanager
def relay(
    target_port: int, identity: Identity, *, asks_first: bool = False, listen: str = "127.0.0.1"
) -> Iterator[Relay]:
    """A running relay to a port of loopback; `asks_first` for PostgreSQL, whose clients ask before they start TLS."""
    front = Relay(target_port, identity, asks_first=asks_first, listen=listen)
    front.start()
    try:
        yield front
    finally:
        front.stop()

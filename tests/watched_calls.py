"""Runs a command and tells what it, and whatever it starts, wanted of the network and changed in the file system.

The kernel stops every such system call and asks this process (seccomp_unotify(2), Linux 5.9 and later), so neither a
native library nor a file that is gone a moment later escapes. Needs no privileges. As root the command has no network
but loopback besides (network_namespaces(7)); otherwise a connection elsewhere is refused by the answer.
"""

import ctypes
import errno
import fcntl
import ipaddress
import os
import platform
import queue
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from workers.network import leave_the_network

PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER, NEW_LISTENER = 1, 1 << 3
NOTIF_RECV, NOTIF_SEND = 0xC0502100, 0xC0182101
REQUEST, ANSWER = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")
CONTINUE = 1
ALLOW, NOTIFY, REFUSE = 0x7FFF0000, 0x7FC00000, 0x00050000 | errno.ENOSYS
LOAD, JUMP_EQUAL, JUMP_SET, RETURN = 0x20, 0x15, 0x45, 0x06
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
AT_FDCWD = -100
DNS_PORT = 53
LONGEST_PATH, LONGEST_PACKET = 4096, 512
PAGE = 4096
# Name services that answer on a UNIX socket: asking one is a look-up.
NAME_SERVICES = ("/run/systemd/resolve/", "/run/nscd/", "/var/run/nscd/")

# name → its number on x86-64 and on 64-bit ARM (None: not there), from the kernel's unistd tables.
NETWORK_CALLS = {
    "connect": (42, 203),
    "bind": (49, 200),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
}
# name → numbers, and the places of its paths among the arguments: (place of the directory or None, place of the path).
FILE_CALLS: dict[str, tuple[tuple[int | None, int | None], tuple[tuple[int | None, int], ...]]] = {
    "open": ((2, None), ((None, 0),)),
    "openat": ((257, 56), ((0, 1),)),
    "openat2": ((437, 437), ((0, 1),)),
    "creat": ((85, None), ((None, 0),)),
    "truncate": ((76, 45), ((None, 0),)),
    "mkdir": ((83, None), ((None, 0),)),
    "mkdirat": ((258, 34), ((0, 1),)),
    "mknod": ((133, None), ((None, 0),)),
    "mknodat": ((259, 33), ((0, 1),)),
    "link": ((86, None), ((None, 1),)),
    "linkat": ((265, 37), ((2, 3),)),
    "symlink": ((88, None), ((None, 1),)),
    "symlinkat": ((266, 36), ((1, 2),)),
    "rename": ((82, None), ((None, 0), (None, 1))),
    "renameat": ((264, 38), ((0, 1), (2, 3))),
    "renameat2": ((316, 276), ((0, 1), (2, 3))),
    "unlink": ((87, None), ((None, 0),)),
    "unlinkat": ((263, 35), ((0, 1),)),
    "rmdir": ((84, None), ((None, 0),)),
    "chmod": ((90, None), ((None, 0),)),
    "fchmodat": ((268, 53), ((0, 1),)),
    "utimensat": ((280, 88), ((0, 1),)),
}
# Where the flags are, of the calls that also only read.
FLAGS_AT = {"open": 1, "openat": 2}
IO_URING_SETUP = 425
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
is_possible = sys.platform == "linux" and platform.machine() in MACHINES and sys.byteorder == "little"


@dataclass(frozen=True)
class Call:
    """One system call that was asked for: what it was about, by which process, run as what."""

    name: str
    target: str
    pid: int
    program: str
    directory: str
    """The process's working directory."""

    def __str__(self) -> str:
        return f"{self.name} {self.target} by {self.program} ({self.pid})"


@dataclass
class Watched:
    """What a command did. `connects` holds what would have left the machine: connections, packets, look-ups of names,
    and listening on more than loopback; `writes` every path that it opened for writing, made, moved or removed."""

    exit_code: int | None = None
    connects: list[Call] = field(default_factory=list)
    writes: list[Call] = field(default_factory=list)
    is_cut_off: bool = False
    """Whether it had no network but loopback besides."""

    def written_outside(self, *places: Path) -> list[Call]:
        """The writes to none of these directories and files, nor to what is no file (/proc, /dev/null)."""
        inside = [str(place.resolve()) for place in places]
        return [call for call in self.writes if not _is_in(call.target, [*inside, "/proc", "/dev/null"])]


def run_watched(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path, output: IO[bytes], timeout_s: float
) -> Watched:
    """Run it to its end, or kill it after the time; its output goes to `output`, which this process opened.

    Raises:
        OSError: this kernel lets nobody watch.
    """
    watched = Watched()
    installed: queue.SimpleQueue[int | OSError] = queue.SimpleQueue()

    def run() -> None:
        # Filters and namespaces are a thread's own: what this thread starts inherits them, others go on freely.
        try:
            watched.is_cut_off = os.geteuid() == 0 and leave_the_network()
            installed.put(_install_filter())
        except OSError as error:
            installed.put(error)
            return
        with subprocess.Popen(
            command, env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as process:
            try:
                watched.exit_code = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()

    runner = threading.Thread(target=run)
    runner.start()
    listener = installed.get()
    if isinstance(listener, OSError):
        raise listener
    _Watcher(listener, watched).watch()
    runner.join()
    return watched


def _is_in(path: str, places: Sequence[str]) -> bool:
    return any(path == place or path.startswith(place + "/") for place in places)


def _install_filter() -> int:
    """Have the kernel ask about this thread's calls; gives the descriptor on which it asks."""
    column, architecture = MACHINES[platform.machine()]
    program = [(LOAD, 0, 0, ARCHITECTURE_AT), (JUMP_EQUAL, 1, 0, architecture), (RETURN, 0, 0, REFUSE)]
    program += [(LOAD, 0, 0, NUMBER_AT)]
    # It would do the rest unseen.
    program += [(JUMP_EQUAL, 0, 1, IO_URING_SETUP), (RETURN, 0, 0, REFUSE)]
    for name, number in _numbers(column).items():
        if name in FLAGS_AT:
            flags_at = ARGUMENTS_AT + 8 * FLAGS_AT[name]
            program += [(JUMP_EQUAL, 0, 4, number), (LOAD, 0, 0, flags_at), (JUMP_SET, 0, 1, WRITING)]
            program += [(RETURN, 0, 0, NOTIFY), (RETURN, 0, 0, ALLOW)]
        else:
            program += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, NOTIFY)]
    program += [(RETURN, 0, 0, ALLOW)]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    described = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    seccomp = {"x86_64": 317, "aarch64": 277}[platform.machine()]
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    listener = libc.syscall(seccomp, SECCOMP_SET_MODE_FILTER, NEW_LISTENER, described)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "the kernel does not let this process watch system calls")
    return int(listener)


def _numbers(column: int) -> dict[str, int]:
    numbers = {name: both[column] for name, both in NETWORK_CALLS.items()}
    numbers |= {name: both[column] for name, (both, _) in FILE_CALLS.items() if both[column] is not None}  # type: ignore[misc]
    return numbers


class _Watcher:
    """Answers the kernel until no process is left that it asks about."""

    def __init__(self, listener: int, watched: Watched) -> None:
        self._listener, self._watched = listener, watched
        self._names = {number: name for name, number in _numbers(MACHINES[platform.machine()][0]).items()}
        # Sockets that were told they are connected to a name server, so that they say what name they look for.
        self._resolvers: set[tuple[int, int]] = set()

    def watch(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        try:
            while True:
                ((_, events),) = poll.poll()
                if not events & select.POLLIN:
                    return
                request = bytearray(REQUEST.size)
                # Gone in the meantime: the process was killed.
                with suppress(FileNotFoundError, InterruptedError):
                    fcntl.ioctl(self._listener, NOTIF_RECV, request, True)
                    self._answer(*REQUEST.unpack(request))
        finally:
            os.close(self._listener)

    def _answer(self, ident: int, pid: int, _: int, number: int, *rest: int) -> None:
        arguments = rest[2:]
        refusal: int | None = None
        try:
            refusal = self._looked_at(self._names[number], pid, arguments)
        except OSError as error:
            self._note(self._watched.connects, "unreadable call", f"{self._names[number]}: {error}", pid)
        answer = ANSWER.pack(ident, 0, 0, CONTINUE)
        if refusal is not None:
            answer = ANSWER.pack(ident, 0, -refusal, 0)
        fcntl.ioctl(self._listener, NOTIF_SEND, answer)

    def _looked_at(self, name: str, pid: int, arguments: Sequence[int]) -> int | None:
        """Note what is of interest; gives the errno to answer with (0: it is told that it succeeded), or None."""
        if name in FILE_CALLS:
            for directory_at, path_at in FILE_CALLS[name][1]:
                directory = AT_FDCWD if directory_at is None else ctypes.c_int32(arguments[directory_at]).value
                path = _path(pid, directory, _text(pid, arguments[path_at]))
                self._note(self._watched.writes, name, path, pid)
            return None
        looks: dict[str, Callable[[int, Sequence[int]], int | None]] = {
            "connect": self._connect,
            "bind": self._bind,
            "sendto": self._sendto,
        }
        return looks[name](pid, arguments) if name in looks else self._sendmsg(name, pid, arguments)

    def _connect(self, pid: int, arguments: Sequence[int]) -> int | None:
        address = _memory(pid, arguments[1], min(arguments[2], 128))
        target, is_inside, port = _address(address)
        if target.startswith(NAME_SERVICES):
            return errno.ENOENT  # it asks over the network then, and is seen
        if port == DNS_PORT:
            self._resolvers.add((pid, arguments[0]))
            return 0
        return None if is_inside else self._refuse("connect", target, pid)

    def _bind(self, pid: int, arguments: Sequence[int]) -> int | None:
        address = _memory(pid, arguments[1], min(arguments[2], 128))
        target, is_inside, _ = _address(address)
        if target.startswith("/"):
            self._note(self._watched.writes, "bind", target, pid)
        # A client's socket that takes any port of any address is no listener yet; with a port it may become one.
        if not is_inside and not target.endswith(" port 0"):
            self._note(self._watched.connects, "bind", target, pid)
        return None

    def _sendto(self, pid: int, arguments: Sequence[int]) -> int | None:
        return self._send("sendto", pid, arguments[0], (arguments[4], arguments[5]), (arguments[1], arguments[2]))

    def _sendmsg(self, name: str, pid: int, arguments: Sequence[int]) -> int | None:
        # struct msghdr: name, its length, the pieces and their count; sendmmsg has several, of which one tells enough.
        header = _memory(pid, arguments[1], 32)
        to, to_bytes, pieces, count = struct.unpack("=QI4xQQ", header)
        piece = struct.unpack("=QQ", _memory(pid, pieces, 16)) if pieces and count else (0, 0)
        return self._send(name, pid, arguments[0], (to, to_bytes), piece)

    def _send(self, name: str, pid: int, descriptor: int, to: tuple[int, int], piece: tuple[int, int]) -> int | None:
        target, is_inside, port = "", True, 0
        if to[0]:
            target, is_inside, port = _address(_memory(pid, to[0], min(to[1], 128)))
        if port == DNS_PORT or (not to[0] and (pid, descriptor) in self._resolvers):
            question = _dns_question(_memory(pid, piece[0], min(piece[1], LONGEST_PACKET)))
            return self._refuse("look-up", question, pid)
        return None if is_inside else self._refuse(name, target, pid)

    def _refuse(self, name: str, target: str, pid: int) -> int:
        self._note(self._watched.connects, name, target, pid)
        return errno.ENETUNREACH

    @staticmethod
    def _note(calls: list[Call], name: str, target: str, pid: int) -> None:
        program = directory = "?"
        with suppress(OSError):
            program = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
            directory = str(Path(f"/proc/{pid}/cwd").readlink())
        calls.append(Call(name, target, pid, program.strip(), directory))


def _memory(pid: int, address: int, count: int) -> bytes:
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(count)


def _text(pid: int, address: int) -> str:
    """A C string; read page by page, for the page after it may not be there."""
    found = b""
    while len(found) < LONGEST_PATH:
        found += _memory(pid, address + len(found), PAGE - (address + len(found)) % PAGE)
        if b"\0" in found:
            break
    return os.fsdecode(found.partition(b"\0")[0])


def _path(pid: int, directory: int, path: str) -> str:
    """The path as it is seen from here, its directory without symbolic links."""
    if not path.startswith("/"):
        start = f"/proc/{pid}/cwd" if directory == AT_FDCWD else f"/proc/{pid}/fd/{directory}"
        path = f"{Path(start).readlink()}/{path}".rstrip("/")
    if path.startswith("/proc/"):
        return path
    parent, _, name = path.rstrip("/").rpartition("/")
    return os.path.normpath(f"{os.path.realpath(parent or '/')}/{name}")


def _address(address: bytes) -> tuple[str, bool, int]:
    """A socket address in words, whether it stays on this machine, and its port."""
    (family,) = struct.unpack_from("=H", address) if len(address) >= 2 else (0,)
    if family == socket.AF_UNIX:
        name = address[2:]
        text = "abstract " + os.fsdecode(name[1:]) if name.startswith(b"\0") else os.fsdecode(name.partition(b"\0")[0])
        return text, True, 0
    if family in (socket.AF_INET, socket.AF_INET6):
        port = int.from_bytes(address[2:4], "big")
        is_six = family == socket.AF_INET6
        host: Any = ipaddress.ip_address(address[8:24] if is_six else address[4:8])
        mapped = getattr(host, "ipv4_mapped", None)
        return f"{host} port {port}", (mapped or host).is_loopback, port
    # Disconnecting, and talking to the kernel.
    return f"address family {family}", family in (socket.AF_UNSPEC, socket.AF_NETLINK), 0


def _dns_question(packet: bytes) -> str:
    """The name that a DNS query asks for (RFC 1035, 4.1)."""
    labels, place = [], 12
    while place < len(packet) and (length := packet[place]):
        labels.append(packet[place + 1 : place + 1 + length].decode("ascii", errors="replace"))
        place += 1 + length
    return ".".join(labels) or "a name"

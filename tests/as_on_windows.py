"""Shows the library a system like Windows while it runs on Linux; see `pretend`.

Only for modules of `olivepress` itself: modules and functions that Windows lacks are not there, `sys.platform` is
win32, a lock is msvcrt's, and the file system refuses what NTFS refuses: to rename onto what exists, to remove or move
what is open, to open or flush a directory, to make a symbolic link without privileges. Other libraries see Linux, for
their own Windows branches need Windows. Sources: the Availability notes of the Python library reference, and
CreateFile, MoveFileEx and DeleteFile in the Win32 reference.
"""

# What pathlib itself calls is replaced here, and long lists of names read best as text.
# ruff: noqa: PTH112, PTH115, PTH116, PTH208, SIM905

import builtins
import errno
import fcntl
import os
import pathlib
import signal
import socket
import stat
import sys
import time
import types
from collections.abc import Callable, Mapping
from typing import Any

MISSING_MODULES = frozenset(
    "_posixsubprocess crypt curses dbm.gnu fcntl grp nis posix posixpath pty pwd readline resource spwd syslog "
    "termios tty".split()
)
MISSING_IN_OS = frozenset(
    "CLD_EXITED EX_OK F_LOCK O_ASYNC O_CLOEXEC O_DIRECT O_DIRECTORY O_DSYNC O_LARGEFILE O_NDELAY O_NOATIME O_NOCTTY "
    "O_NOFOLLOW O_NONBLOCK O_PATH O_RSYNC O_SYNC O_TMPFILE PRIO_PROCESS P_ALL RTLD_NOW SCHED_OTHER WCONTINUED "
    "WEXITSTATUS WIFEXITED WIFSIGNALED WNOHANG WTERMSIG WUNTRACED chown chroot confstr copy_file_range ctermid eventfd "
    "fchdir fchown fdatasync fork forkpty fpathconf fstatvfs get_blocking getegid geteuid getgid getgrouplist "
    "getgroups getloadavg getpgid getpgrp getpriority getresgid getresuid getsid getuid getxattr initgroups killpg "
    "lchown listxattr lockf login_tty makedev major memfd_create minor mkfifo mknod nice openpty pathconf pidfd_open "
    "pipe2 posix_fadvise posix_fallocate posix_spawn posix_spawnp pread preadv pwrite pwritev register_at_fork "
    "removexattr sched_getaffinity sched_setaffinity sched_yield sendfile set_blocking setegid seteuid setgid "
    "setgroups setns setpgid setpriority setregid setresgid setresuid setreuid setsid setuid setxattr splice statvfs "
    "sync sysconf tcgetpgrp tcsetpgrp ttyname uname unshare wait wait3 wait4 waitid".split()
)
MISSING_IN_SIGNAL = frozenset(
    "ITIMER_REAL SIGALRM SIGBUS SIGCHLD SIGCONT SIGHUP SIGIO SIGKILL SIGPIPE SIGPROF SIGQUIT SIGSTOP SIGTSTP SIGTTIN "
    "SIGTTOU SIGUSR1 SIGUSR2 SIGWINCH alarm getitimer pause pidfd_send_signal pthread_kill pthread_sigmask setitimer "
    "siginterrupt sigpending sigtimedwait sigwait sigwaitinfo".split()
)
MISSING_IN_TIME = frozenset("CLOCK_MONOTONIC CLOCK_REALTIME clock_getres clock_gettime tzset".split())
MISSING_IN_SOCKET = frozenset("AF_NETLINK AF_PACKET AF_UNIX socketpair_unix recv_fds send_fds".split())
DIRECTORY_IS_DENIED = (errno.EACCES, "Access is denied")


class _Shown(types.ModuleType):
    """A module without what the other system lacks, and with what it has instead."""

    def __init__(self, real: types.ModuleType, missing: frozenset[str], instead: Mapping[str, Any]) -> None:
        super().__init__(real.__name__, real.__doc__)
        self.__dict__.update(instead)
        self.__dict__["_real"], self.__dict__["_missing"] = real, missing

    def __getattr__(self, name: str) -> Any:
        if name in self._missing:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} on Windows")
        return getattr(self._real, name)


def pretend() -> None:
    """From now on modules of olivepress see Windows. Call it before the first is imported."""
    if any(name.partition(".")[0] == "olivepress" for name in sys.modules):
        raise AssertionError("olivepress was imported before")
    shown = {
        "os": _Shown(os, MISSING_IN_OS, _operating_system()),
        "sys": _Shown(sys, frozenset({"getdlopenflags", "setdlopenflags", "abiflags"}), {"platform": "win32"}),
        "signal": _Shown(signal, MISSING_IN_SIGNAL, {"CTRL_BREAK_EVENT": 1, "CTRL_C_EVENT": 0}),
        "time": _Shown(time, MISSING_IN_TIME, {}),
        "socket": _Shown(socket, MISSING_IN_SOCKET, {}),
        "msvcrt": _locking(),
    }
    real_import = builtins.__import__

    def import_as_shown(
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> types.ModuleType:
        if level or (globals or {}).get("__name__", "").partition(".")[0] != "olivepress":
            return real_import(name, globals, locals, fromlist, level)
        root = name.partition(".")[0]
        if root in MISSING_MODULES:
            raise ModuleNotFoundError(f"No module named {name!r} on Windows", name=name)
        if name in shown or (root in shown and not fromlist):
            return shown[root]
        return real_import(name, globals, locals, fromlist, level)

    builtins.__import__ = import_as_shown
    _refuse_as_ntfs()


def _operating_system() -> dict[str, Any]:
    def open_file(path: Any, flags: int, mode: int = 0o777, **directory: Any) -> int:
        if directory:
            raise NotImplementedError("dir_fd unavailable on this platform")
        if os.path.isdir(path):
            raise PermissionError(*DIRECTORY_IS_DENIED, os.fspath(path))
        return os.open(path, flags, mode)

    def fsync(descriptor: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        os.fsync(descriptor)

    return {"name": "nt", "O_BINARY": 0, "open": open_file, "fsync": fsync, "startfile": None}


def _locking() -> types.ModuleType:
    module = types.ModuleType("msvcrt")

    def locking(descriptor: int, mode: int, count: int) -> None:
        """As msvcrt: EACCES where it is locked; here the lock is a flock, for it must be seen by Linux too."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_UN if mode == 0 else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    module.__dict__.update(LK_UNLCK=0, LK_LOCK=1, LK_NBLCK=2, locking=locking)
    return module


def _refuse_as_ntfs() -> None:
    """Files are removed and moved by way of pathlib and shutil too, so what they call refuses for all."""

    def refusing(call: Callable[..., Any], *, check: Callable[..., None]) -> Callable[..., Any]:
        def checked(*arguments: Any, **options: Any) -> Any:
            if not any(option in options and options[option] is not None for option in ("dir_fd", "src_dir_fd")):
                check(*arguments)
            return call(*arguments, **options)

        return checked

    os.unlink = refusing(os.unlink, check=_refuse_open)
    os.remove = refusing(os.remove, check=_refuse_open)
    os.rename = refusing(os.rename, check=_refuse_rename)
    os.replace = refusing(os.replace, check=_refuse_replace)
    os.symlink = refusing(os.symlink, check=_refuse_link)
    # shutil.rmtree otherwise works below directory descriptors, which Windows has not.
    os.supports_dir_fd = set()
    if "shutil" in sys.modules:
        sys.modules["shutil"]._use_fd_functions = False  # type: ignore[attr-defined]
    for name in ("unlink", "rename", "replace", "symlink"):
        if hasattr(pathlib, "_NormalAccessor"):
            setattr(pathlib._NormalAccessor, name, staticmethod(getattr(os, name)))  # type: ignore[attr-defined]


def _refuse_open(path: Any, *_: Any) -> None:
    """Nothing that any handle of this process is on, or below, can go or move."""
    wanted = os.path.realpath(path)
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue
        if target == wanted or target.startswith(wanted + "/"):
            raise PermissionError(errno.EACCES, "it is being used by another process", os.fspath(path))


def _refuse_rename(source: Any, target: Any, *_: Any) -> None:
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", os.fspath(target))
    _refuse_open(source)


def _refuse_replace(source: Any, target: Any, *_: Any) -> None:
    _refuse_open(source)
    if os.path.lexists(target):
        if os.path.isdir(target):
            raise PermissionError(*DIRECTORY_IS_DENIED, os.fspath(target))
        if not os.stat(target).st_mode & stat.S_IWUSR:
            # A file that is read-only.
            raise PermissionError(*DIRECTORY_IS_DENIED, os.fspath(target))
        _refuse_open(target)


def _refuse_link(source: Any, target: Any, *_: Any) -> None:
    raise OSError(errno.EPERM, "A required privilege is not held by the client", os.fspath(target))

"""Files that appear whole or not at all, and stay after a power cut."""

import contextlib
import errno
import os
import secrets
import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from olivepress.errors import DiskFull

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_MIB = 1024 * 1024


def write_whole(path: Path, content: bytes, tmp: Path) -> None:
    """Makes `path` a read-only file with `content`, in place of what is there.

    Written to a file in `tmp` (of the same file system), brought to the disk, renamed. The new name itself has
    reached the disk only after `sync_directory` of its directory.
    """
    temporary = _temporary_path(tmp)
    try:
        with open(temporary, "xb", opener=_open_read_only) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        path.parent.mkdir(exist_ok=True)
        _make_writable_on_windows(path)
        temporary.replace(path)
    except BaseException:
        _remove(temporary)
        raise


def renew(path: Path, tmp: Path) -> int | None:
    """Makes a file as young as one written now, by its file system's clock; answers its size, None if it is not there.

    Only its owner may date a read-only file: another user's is replaced by a copy. On a file system that is mounted
    read-only nothing becomes younger: who reads there puts nothing.
    """
    try:
        try:
            os.utime(path)
        except PermissionError:
            write_whole(path, path.read_bytes(), tmp)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
        return path.stat().st_size
    except FileNotFoundError:
        return None


def sync_directory(directory: Path) -> None:
    """Brings the names in a directory to the disk, where the platform can."""
    if sys.platform == "win32":  # opens no directories; NTFS journals its names
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # how some network file systems decline
            raise
    finally:
        os.close(descriptor)


def sweep(tmp: Path, older_than_s: float) -> int:
    """Removes the files in `tmp` that were written last `older_than_s` ago or earlier; answers how many."""
    os.utime(tmp)  # now, by the clock that also dated the files
    now_s = tmp.stat().st_mtime
    swept = 0
    for path in tmp.iterdir():
        with contextlib.suppress(FileNotFoundError):  # its writer, or another sweep, was faster
            status = path.lstat()
            # No writer makes a directory there.
            if now_s - status.st_mtime >= older_than_s and not stat.S_ISDIR(status.st_mode):
                _remove(path)
                swept += 1
    return swept


@contextlib.contextmanager
def full_disk_is_named(path: Path, needed_bytes: int) -> Iterator[None]:
    """Turns "no space left" and "quota exceeded" while writing to `path` into DiskFull."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFull(
            f"No room is left on the disk of {path}: up to {needed_bytes / _MIB:.1f} MiB were needed"
            f"{_free_part(path)}. Free some space there and try again."
        ) from error


def _free_part(path: Path) -> str:
    existing = path if path.exists() else path.absolute().parent
    with contextlib.suppress(OSError):
        return f", {shutil.disk_usage(existing).free / _MIB:.1f} MiB are free"
    return ""


def _temporary_path(tmp: Path) -> Path:
    return tmp / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"


def _open_read_only(path: str, flags: int) -> int:
    # The mode binds whoever opens the file later; this descriptor may write.
    return os.open(path, flags, stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)


def _remove(path: Path) -> None:
    _make_writable_on_windows(path)
    path.unlink(missing_ok=True)


def _make_writable_on_windows(path: Path) -> None:
    # Windows neither replaces nor removes a read-only file.
    if sys.platform == "win32" and path.exists():
        path.chmod(stat.S_IWRITE)

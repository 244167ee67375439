"""Shares blocks between files instead of copying them, where the file system can (XFS, Btrfs, bcachefs on Linux)."""

import errno
import struct
import sys
from pathlib import Path

if sys.platform == "linux":
    import fcntl

# _IOW(0x94, 13, struct file_clone_range), see ioctl_ficlonerange(2)
_FICLONERANGE = 0x4020940D
_RANGE = struct.Struct("=qQQQ")
# A range that does not begin and end on blocks of the file system cannot be shared.
_BLOCK = 4096
_CANNOT = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EISDIR}


def may_share(offset: int, size_bytes: int, target_size_bytes: int) -> bool:
    """Whether a whole file of `size_bytes` could be shared at `offset` of a target of this full length."""
    ends_on_block = size_bytes % _BLOCK == 0 or offset + size_bytes == target_size_bytes
    return sys.platform == "linux" and offset % _BLOCK == 0 and ends_on_block


def clone_into(source: Path, target: Path, offset: int) -> bool:
    """Make `target` have the content of the file `source` from `offset` on; False, and no change, where it cannot.

    Either file may be written to afterwards without a change of the other: unlike a hard link it is safe.
    """
    if sys.platform != "linux":
        return False
    with source.open("rb") as read, target.open("r+b") as write:
        try:
            fcntl.ioctl(write, _FICLONERANGE, _RANGE.pack(read.fileno(), 0, 0, offset))
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            return False
    return True

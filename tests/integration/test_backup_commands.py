"""`olivepress backup` and `olivepress restore` as an administrator runs them, from SQLite to PostgreSQL."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from olivepress.database.migrations import upgrade
from olivepress.database.sessions import Database
from tests.integration.database_cases import POSTGRESQL, job_of, submit_paths


def olivepress(data_dir: Path, *arguments: str, url: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Run the command line on a data directory, or on the database of a URL."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OLIVEPRESS_")}
    environment |= {"OLIVEPRESS_DATA_DIR": str(data_dir)} | ({"OLIVEPRESS_DATABASE_URL": url} if url else {})
    command = [sys.executable, "-m", "olivepress", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def document(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    values: dict[str, Any] = json.loads(done.stdout)
    return values


@pytest.mark.parametrize("database_kind", [POSTGRESQL], indirect=True)
def test_a_laptop_becomes_a_team_server(tmp_path: Path, database_url: str) -> None:
    laptop, team, file = tmp_path / "laptop", tmp_path / "team", tmp_path / "laptop.tar.gz"
    laptop.mkdir()
    (laptop / "admin-key").write_text("the key\n")
    database = Database(f"sqlite:///{laptop / 'olivepress.sqlite'}")
    upgrade(database)
    (job,) = submit_paths(database, "/models/a")
    database.dispose()
    written = document(olivepress(laptop, "backup", str(file), "--json"))
    assert (written["rows"]["jobs"], written["secrets"]) == (1, ["admin-key"])
    assert written["size_bytes"] == file.stat().st_size

    restored = document(olivepress(team, "restore", str(file), "--json", url=database_url))
    assert restored["secrets"] == {"admin-key": True}
    assert restored["missing_artifacts"] == []
    assert "***" in restored["database"]
    assert (team / "admin-key").read_text() == "the key\n"
    database = Database(database_url)
    assert job_of(database, job).model_name == "a-int4"
    database.dispose()

    again = olivepress(team, "restore", str(file), url=database_url)
    assert again.returncode == 1
    assert "the database is not empty" in again.stderr
    forced = olivepress(team, "restore", str(file), "--force", url=database_url)
    assert forced.returncode == 0, forced.stderr
    assert f"{database_url.rpartition('/')[2]}\n" in forced.stdout


def test_a_file_that_is_no_backup_or_not_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a backup\n")
    wrong = olivepress(tmp_path / "data", "restore", str(tmp_path / "notes.txt"))
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    assert "is no whole backup of olivepress" in wrong.stderr
    missing = olivepress(tmp_path / "data", "restore", str(tmp_path / "none.tar.gz"))
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    assert "none.tar.gz" in missing.stderr


def test_a_database_that_does_not_answer_has_its_own_exit_code(tmp_path: Path) -> None:
    done = olivepress(tmp_path, "backup", str(tmp_path / "x.tar.gz"), url="postgresql+psycopg://a:b@127.0.0.1:1/c")
    assert done.returncode == 3
    assert "the database does not answer" in done.stderr
    assert not (tmp_path / "x.tar.gz").exists()

"""The client part on a system like Windows: it imports, and versions are pulled, installed, verified and removed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from olivepress.cli import Commands
from olivepress.database.migrations import upgrade
from olivepress.database.sessions import Database
from olivepress.own_process import PASSED_ON
from tests.integration.api_cases import KEY, PACKAGE, api_over, publish_job, served
from tests.integration.database_cases import sqlite_url

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pretends on Linux")

REPOSITORY = Path(__file__).parents[2]
COMMAND = "from tests.as_on_windows import pretend; pretend(); import sys; from olivepress.cli import run; "
RUN_ALL = (
    COMMAND
    + """
import contextlib, io, json
told = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = run([*arguments, "--json"])
    told.append([code, json.loads(printed.getvalue())])
print(json.dumps(told))
"""
)
WEIGHTS = bytes(range(256)) * 20_000
NEWER = PACKAGE | {"model.onnx.data": WEIGHTS[::-1]}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An API with two versions of a model."""
    root = tmp_path_factory.mktemp("api")
    database = Database(sqlite_url(root))
    upgrade(database)
    with api_over(database, root) as api:
        for package in (PACKAGE | {"model.onnx.data": WEIGHTS}, NEWER):
            (job,) = api.submit("/models/a", recipes=["cpu-int4"])["jobs"]
            publish_job(api, job, package)
        with served(api.app) as url:
            yield url
    database.dispose()


@pytest.fixture
def on_windows(url: str, tmp_path: Path) -> Any:
    """Runs a program over the client; gives what it prints."""
    environment = {
        **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
        "HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
        "OLIVEPRESS_URL": url,
        "OLIVEPRESS_API_KEY": KEY,
        "OLIVEPRESS_DATA_DIR": str(tmp_path / "data"),
    }

    def run(program: str, *arguments: str) -> str:
        command = [sys.executable, "-c", program, *arguments]
        ended = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert ended.returncode == 0, f"{arguments}: {ended.stdout}\n{ended.stderr}"
        return ended.stdout

    return run


@pytest.fixture
def commands(on_windows: Any) -> Any:
    """Runs commands one after the other; gives the exit code and the document of each."""

    def run(*wanted: tuple[str | Path, ...]) -> list[tuple[int, Any]]:
        given = [[str(argument) for argument in arguments] for arguments in wanted]
        return [(code, told) for code, told in json.loads(on_windows(RUN_ALL, json.dumps(given)))]

    return run


def test_every_module_of_every_command_of_the_client_imports(on_windows: Any) -> None:
    modules = sorted({entry.module for entry in Commands.lazy_commands.values() if entry.extra is None})
    program = (
        COMMAND + "import importlib; [importlib.import_module(name) for name in sys.argv[1:]]; print(*sys.modules)"
    )

    loaded = on_windows(program, *modules).split()

    assert {"olivepress.delivery.pull", "olivepress.foundry.cache", "olivepress.own_process", *modules} <= set(loaded)
    assert not {"workers", "api", "scheduler"} & {name.partition(".")[0] for name in loaded}


def test_a_version_is_pulled_replaced_verified_exported_and_imported(commands: Any, tmp_path: Path) -> None:
    target, file, unpacked = tmp_path / "pulled", tmp_path / "a.tar", tmp_path / "unpacked"

    done = commands(
        ("pull", "a-int4:1", "--to", target),
        ("pull", "a-int4:1", "--to", target),
        ("pull", "a-int4:2", "--to", target, "--replace"),
        ("export", "a-int4:1", file),
        ("import", file, "--to", unpacked),
        ("import", file, "--foundry-cache", tmp_path / "cache"),
    )

    assert [code for code, _ in done] == [0] * 6
    assert (target / "model.onnx.data").read_bytes() == WEIGHTS[::-1]
    assert (unpacked / "model.onnx.data").read_bytes() == WEIGHTS
    assert sorted(path.name for path in tmp_path.iterdir() if "home" not in path.name) == [
        "a.tar",
        "cache",
        "pulled",
        "unpacked",
    ]
    (unpacked / "model.onnx.data").write_bytes(WEIGHTS[::-1])
    # Nobody signed either, hence the exit code.
    assert [(code, files_are_right(told)) for code, told in commands(("verify", target), ("verify", unpacked))] == [
        (1, True),
        (1, False),
    ]


def files_are_right(told: Any) -> bool:
    """What `olivepress verify` says of the files."""
    return bool(next(one for one in told["findings"] if one["check"] == "files")["is_right"])


def test_a_version_is_installed_beside_another_mended_and_uninstalled(commands: Any, tmp_path: Path) -> None:
    cache = ("--foundry-cache", tmp_path / "cache")

    done = commands(
        ("install", "a-int4:1", *cache), ("install", "a-int4:1", *cache), ("install", "a-int4:2", *cache, "--replace")
    )

    assert [(code, told["was_there"]) for code, told in done] == [(0, False), (0, True), (0, False)]
    first, _, newer = (Path(told["directory"]) for _, told in done)
    assert not first.exists()
    (newer / "model.onnx.data").write_bytes(WEIGHTS)
    ((code, _),) = commands(("install", "a-int4:2", *cache))
    assert (code, (newer / "model.onnx.data").read_bytes()) == (0, WEIGHTS[::-1])
    ((code, _),) = commands(("uninstall", "a-int4:2", *cache))
    assert (code, newer.exists()) == (0, False)


def test_the_doctor_looks_at_the_machine_and_says_where_the_self_test_runs(commands: Any) -> None:
    ((code, told),) = commands(("doctor", "--self-test"))

    checks = {check["name"]: check for check in told["checks"]}
    assert (code, checks["self test"]["detail"]) == (1, "no worker runs on Windows")
    assert checks["api"]["status"] == checks["data directory"]["status"] == "ok"


REFUSED = {
    "import fcntl": "ModuleNotFoundError",
    "from os import fork": "ImportError",
    "import os; os.geteuid()": "AttributeError",
    "import signal; signal.SIGKILL": "AttributeError",
    "import sys; assert sys.platform == 'linux'": "AssertionError",
    "import os; os.open('.', os.O_RDONLY)": "PermissionError",
    "from pathlib import Path; Path('a').touch(); Path('b').touch(); Path('a').rename('b')": "FileExistsError",
    "from pathlib import Path; Path('c').touch(); file = open('c'); Path('c').unlink()": "PermissionError",
    "from pathlib import Path; Path('d').mkdir(); Path('e').mkdir(); Path('d').replace('e')": "PermissionError",
    "import shutil, os; os.mkdir('f'); file = open('f/a', 'w'); shutil.rmtree('f')": "PermissionError",
}
TRY_EACH = """
from tests.as_on_windows import pretend; pretend(); import json, sys
found = {}
for code in json.loads(sys.argv[1]):
    try:
        exec(compile(code, "planted", "exec"), {"__name__": "olivepress.planted"})
    except Exception as error:
        found[code] = type(error).__name__
print(json.dumps(found))
"""


def test_the_pretence_refuses_what_windows_refuses(on_windows: Any) -> None:
    """That the tests above would fail if the library did so."""
    assert json.loads(on_windows(TRY_EACH, json.dumps(list(REFUSED)))) == REFUSED

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
RUN = COMMAND + "sys.exit(run(sys.argv[1:]))"
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
    """Runs a command of the client; gives its document. The first argument is the exit code that must come."""
    environment = {
        **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
        "HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
        "OLIVEPRESS_URL": url,
        "OLIVEPRESS_API_KEY": KEY,
        "OLIVEPRESS_DATA_DIR": str(tmp_path / "data"),
    }

    def run(code: int, *arguments: str | Path, program: str = RUN) -> str:
        command = [sys.executable, "-c", program, *map(str, arguments)]
        ended = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert ended.returncode == code, f"{arguments}: {ended.stdout}\n{ended.stderr}"
        assert "Traceback" not in ended.stderr
        return ended.stdout

    return run


def test_every_module_of_every_command_of_the_client_imports(on_windows: Any) -> None:
    modules = sorted({entry.module for entry in Commands.lazy_commands.values() if entry.extra is None})
    program = (
        COMMAND + "import importlib; [importlib.import_module(name) for name in sys.argv[1:]]; print(*sys.modules)"
    )

    loaded = on_windows(0, *modules, program=program).split()

    assert {"olivepress.pull", "olivepress.foundry_cache", "olivepress.own_process", *modules} <= set(loaded)
    assert not {"workers", "api", "scheduler"} & {name.partition(".")[0] for name in loaded}


def files_are_right(told: str) -> bool:
    """What `olivepress verify --json` says of the files."""
    return bool(next(one for one in json.loads(told)["findings"] if one["check"] == "files")["is_right"])


def test_a_version_is_pulled_verified_replaced_and_damage_is_found(on_windows: Any, tmp_path: Path) -> None:
    target = tmp_path / "pulled"
    on_windows(0, "pull", "a-int4:1", "--to", target, "--json")
    assert (target / "model.onnx.data").read_bytes() == WEIGHTS
    on_windows(0, "pull", "a-int4:1", "--to", target, "--json")

    on_windows(0, "pull", "a-int4:2", "--to", target, "--replace", "--json")
    assert (target / "model.onnx.data").read_bytes() == WEIGHTS[::-1]
    assert [path.name for path in tmp_path.iterdir() if "pulled" in path.name] == ["pulled"]

    # Nobody signed it, hence the exit code.
    assert files_are_right(on_windows(1, "verify", target, "--json"))
    (target / "model.onnx.data").write_bytes(WEIGHTS)
    assert not files_are_right(on_windows(1, "verify", target, "--json"))


def test_a_version_is_installed_beside_another_and_uninstalled(on_windows: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = json.loads(on_windows(0, "install", "a-int4:1", "--foundry-cache", cache, "--json"))
    again = json.loads(on_windows(0, "install", "a-int4:1", "--foundry-cache", cache, "--json"))
    assert (first["was_there"], again["was_there"]) == (False, True)

    newer = json.loads(on_windows(0, "install", "a-int4:2", "--foundry-cache", cache, "--replace", "--json"))
    assert Path(newer["directory"], "model.onnx.data").read_bytes() == WEIGHTS[::-1]
    assert not Path(first["directory"]).exists()

    # An update over a damaged one.
    Path(newer["directory"], "model.onnx.data").write_bytes(WEIGHTS)
    mended = json.loads(on_windows(0, "install", "a-int4:2", "--foundry-cache", cache, "--json"))
    assert Path(mended["directory"], "model.onnx.data").read_bytes() == WEIGHTS[::-1]

    on_windows(0, "uninstall", "a-int4:2", "--foundry-cache", cache, "--json")
    assert not Path(newer["directory"]).exists()


def test_a_version_is_exported_and_imported(on_windows: Any, tmp_path: Path) -> None:
    file, directory = tmp_path / "a.tar", tmp_path / "unpacked"
    on_windows(0, "export", "a-int4:1", file, "--json")
    on_windows(0, "import", file, "--to", directory, "--json")
    assert (directory / "model.onnx.data").read_bytes() == WEIGHTS
    on_windows(0, "import", file, "--foundry-cache", tmp_path / "cache", "--json")


def test_the_doctor_looks_at_the_machine_and_says_where_the_self_test_runs(on_windows: Any) -> None:
    told = json.loads(on_windows(1, "doctor", "--self-test", "--json"))
    checks = {check["name"]: check for check in told["checks"]}
    assert checks["self test"]["detail"] == "no worker runs on Windows"
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
    assert json.loads(on_windows(0, json.dumps(list(REFUSED)), program=TRY_EACH)) == REFUSED

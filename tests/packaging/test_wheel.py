"""The built wheel: one name, installable, and every service starts from it."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.stack_cases import running_stack, still_running, wait_until

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.toolchain


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    # No isolation: hatchling is installed already, and an isolated build would ask an index for it.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(directory), str(REPOSITORY)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel installed; its dependencies are those of the environment that runs the tests."""
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    # A plain path in a .pth file: the editable install's own hook there is not run.
    (site,) = (directory / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return directory


def test_the_wheels_only_top_level_name_is_olivepress(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name.split("/")[0] for name in archive.namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"olivepress"}


def test_the_wheel_carries_the_services_the_migrations_and_the_demos_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for wanted in ("_services/workers/app.py", "_services/api/app.py", "_services/scheduler/app.py"):
        assert f"olivepress/{wanted}" in names
    assert any(name.startswith("olivepress/database/migrations/versions/2") for name in names)
    assert any(name.startswith("olivepress/demo_data/") and name.endswith(".jsonl") for name in names)


def test_every_service_starts_from_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    executable = (str(installed / "bin" / "olivepress"),)
    with running_stack(tmp_path / "data", tmp_path, executable=executable) as stack:
        for service in ("api", "scheduler", "worker", "flower"):
            assert stack.part(service).is_running()
        with stack.client() as client:
            # A worker that says what it can build has imported its whole toolchain from the wheel.
            wait_until(lambda: any(worker["architectures"] for worker in client.workers()), 120, every_s=0.5)
        family = stack.family()
        assert stack.stop() == 0
    assert still_running(family) == []


def test_the_client_part_is_imported_fast_and_without_heavy_libraries() -> None:
    heavy = ("torch", "olive", "onnxruntime", "sqlalchemy", "fastapi", "celery", "transformers")
    code = f"""import sys, olivepress, olivepress.client, olivepress.foundry.cache
print([name for name in {heavy} if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"

"""The compose files agree with the code: no engine runs here, but names can be held against names."""

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from olivepress.cli.service import app
from olivepress.settings import Settings

REPOSITORY = Path(__file__).parents[2]
FILES = ["docker-compose.yml", "compose.worker.yml"]


@pytest.mark.parametrize("name", FILES)
def test_every_variable_of_a_compose_file_is_a_setting(name: str) -> None:
    used = set(re.findall(r"^\s+OLIVEPRESS_(\w+):", (REPOSITORY / name).read_text(), re.MULTILINE))
    assert used
    assert {variable.lower() for variable in used} <= set(Settings.model_fields)


@pytest.mark.parametrize("name", FILES)
def test_every_service_of_ours_runs_a_command_that_exists(name: str) -> None:
    services = yaml.safe_load((REPOSITORY / name).read_text())["services"]
    ours = [service for service in services.values() if service["image"] == "olivepress"]
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert {service["command"][0] for service in ours} <= set(commands)


def test_the_image_runs_what_the_compose_files_name() -> None:
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)
    assert json.loads(entry) == ["olivepress", "service"]

"""Compose files as `docker compose` reads them: anchors and merge keys, variables, an override on top of a file.

Only what this project's files use; where a client is installed, a test holds this reader against it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
TEAM = ("docker-compose.yml", "compose.team.yml")
WORKER = ("compose.worker.yml",)
ONE_MACHINE = ("docker-compose.yml",)
Service = dict[str, Any]

_VARIABLE = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<name>\w+)(?:(?P<operator>:?[-?])(?P<word>[^}]*))?\}|(?P<wrong>.))")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30}


class MissingVariable(Exception):
    """A variable that a file asks for with `?` is not set."""


def read(names: tuple[str, ...], variables: Mapping[str, str]) -> dict[str, Any]:
    """The files, later ones on top of earlier ones, with their variables filled in; extension fields (x-…) left out.

    Raises:
        MissingVariable: one that a file asks for is not set.
    """
    merged: dict[str, Any] = {}
    for name in names:
        content = yaml.safe_load((REPOSITORY / name).read_text())
        known = {key: value for key, value in content.items() if not key.startswith("x-")}
        merged = _on_top(merged, filled(known, variables), ())
    for service in merged.get("services", {}).values():
        if "environment" in service:
            service["environment"] = _passed_through(service["environment"], variables)
    return merged


def filled(value: Any, variables: Mapping[str, str]) -> Any:
    """`${NAME}`, `${NAME:-default}`, `${NAME:?message}` and `$$` of all texts, as Compose fills them in."""
    if isinstance(value, dict):
        return {key: filled(inner, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, variables) for inner in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda found: _value_of(found, variables), value)
    return value


def variables_of(names: tuple[str, ...]) -> set[str]:
    """The names of all variables that the files read."""
    text = "\n".join((REPOSITORY / name).read_text() for name in names)
    return {found["name"] for found in _VARIABLE.finditer(text) if found["name"]}


def seconds(duration: str) -> float:
    """A duration such as 1m30s."""
    parts = re.findall(r"(\d+)(ms|s|m|h)", duration)
    assert "".join(number + unit for number, unit in parts) == duration, f"{duration} is no duration"
    return sum(int(number) * _SECONDS[unit] for number, unit in parts)


def size_bytes(size: str) -> int:
    """A size such as 512m: Docker's units are powers of 1024."""
    found = re.fullmatch(r"(\d+)([bkmg])b?", size.lower())
    assert found, f"{size} is no size"
    return int(found[1]) * _BYTES[found[2]]


def in_start_order(services: Mapping[str, Service]) -> list[str]:
    """Names of services, each after those that it depends on."""
    ordered: list[str] = []
    while len(ordered) < len(services):
        ready = [
            name for name in services if name not in ordered and set(services[name].get("depends_on", {})) <= {*ordered}
        ]
        assert ready, f"services that wait for each other: {set(services) - set(ordered)}"
        ordered += ready
    return ordered


def mounts(service: Service) -> dict[str, str]:
    """What lies under each path of a container: a volume's name or a path of the host; tmpfs have an empty one."""
    found = dict.fromkeys(service.get("tmpfs", []), "")
    for volume in service.get("volumes", []):
        source, target, *_ = volume.split(":")
        found[target] = source
    return found


def _passed_through(environment: Mapping[str, str | None], variables: Mapping[str, str]) -> dict[str, str]:
    """A name without a value stands for the variable of that name, and for nothing where there is none."""
    found = {name: variables.get(name) if value is None else value for name, value in environment.items()}
    return {name: value for name, value in found.items() if value is not None}


def _value_of(found: re.Match[str], variables: Mapping[str, str]) -> str:
    assert not found["wrong"], f"Compose does not take ${found['wrong']}; write $$ for a dollar sign"
    if found["escaped"]:
        return "$"
    name, operator, word = found["name"], found["operator"] or "", found["word"] or ""
    value = variables.get(name)
    is_missing = value is None or (operator.startswith(":") and not value)
    if is_missing and operator.endswith("?"):
        raise MissingVariable(name)
    if is_missing and operator.endswith("-"):
        return word
    return value or ""


def _on_top(below: Any, above: Any, path: tuple[str, ...]) -> Any:
    """Mappings are merged, commands and tests replaced, volumes merged by their target, other lists added up."""
    if isinstance(below, dict) and isinstance(above, dict):
        keys = [*below, *(key for key in above if key not in below)]
        return {
            key: _on_top(below[key], above[key], (*path, key)) if key in below and key in above
            else above.get(key, below.get(key))
            for key in keys
        }  # fmt: skip
    if not isinstance(above, list) or path[-1] in ("command", "test"):
        return above
    if path[-1] == "volumes":
        by_target = {volume.split(":")[1]: volume for volume in [*below, *above]}
        return [*by_target.values()]
    return [*below, *above]

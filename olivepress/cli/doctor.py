"""`olivepress doctor`: is this machine fit, and is every part of the stack there?"""

import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

import olivepress
from olivepress.cli import FAILED
from olivepress.cli.checks import Json, check
from olivepress.cli.options import AsJson
from olivepress.cli.output import connect, console, emit
from olivepress.cli.self_test import run_self_test
from olivepress.cli.tables import checks_table
from olivepress.cli.toolchains import local_toolchain, toolchain_checks
from olivepress.connection import default_data_dir
from olivepress.errors import OlivepressError

TESTED_PYTHON = ((3, 11),)
LOW_DISK_BYTES = 5 * 10**9
# What the base needs, then what each extra brings.
PACKAGES = {
    "base": ("httpx", "pydantic", "rich", "typer"),
    "server": ("fastapi", "sqlalchemy", "celery"),
    "worker": ("olive-ai", "onnxruntime", "onnxruntime-genai", "torch", "foundry-local-sdk"),
}


def doctor(
    self_test: Annotated[
        bool,
        typer.Option("--self-test", help="Press a tiny checkpoint here and chat with it; no stack is needed for that."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check this machine and the stack.

    Each line is ok, warn or fail, with what to do now. The self test makes a tiny checkpoint, converts it to int4 and
    has it answer, by onnxruntime-genai and inside Foundry Local: seconds, most of them for loading the toolchain.

    [bold]Exit codes[/]
      0 no check failed (warn is no failure)
      1 one failed: this machine, a part of the stack, a part of the self test, or no stack answers
        (with --self-test, that no stack runs here is a warn)

    [bold]Examples[/]
      olivepress doctor
      olivepress doctor --self-test
      olivepress doctor --json | jq '.checks[] | select(.status != "ok")'
    """
    missing = [name for name in PACKAGES["worker"] if _version_of(name) is None]
    here = local_toolchain() if not missing else None
    checks = [*_machine(), *_stack(here, is_needed=not self_test)]
    found = None
    if self_test:
        found, more = run_self_test(missing, console(stderr=True))
        checks += more
    is_ok = all(one["status"] != "fail" for one in checks)
    if as_json:
        emit({"ok": is_ok, "checks": checks, "toolchain": here, "self_test": found})
    else:
        console().print(checks_table(checks))
    if not is_ok:
        raise typer.Exit(FAILED)


def _machine() -> Iterator[Json]:
    yield _python()
    for extra, distributions in PACKAGES.items():
        yield _packages(extra, distributions)
    yield _data_dir(default_data_dir())


def _python() -> Json:
    tested = " and ".join(f"{major}.{minor}" for major, minor in TESTED_PYTHON)
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] in TESTED_PYTHON:
        return check("python", "ok", found)
    return check("python", "warn", found, f"olivepress is tested on {tested}; use it if something fails")


def _packages(extra: str, distributions: tuple[str, ...]) -> Json:
    versions = {name: _version_of(name) for name in distributions}
    found = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
    missing = [name for name, number in versions.items() if number is None]
    if not missing:
        return check(f"packages ({extra})", "ok", found)
    if extra == "base":
        return check("packages (base)", "fail", f"missing: {', '.join(missing)}", "run: pip install olivepress")
    what_now = f"only where this machine runs that part: pip install 'olivepress[{extra}]'"
    return check(f"packages ({extra})", "warn", f"missing: {', '.join(missing)}", what_now)


def _version_of(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _data_dir(path: Path) -> Json:
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
        free_bytes = shutil.disk_usage(existing).free
    except OSError as error:
        return check("data directory", "fail", f"{path}: {error.strerror}", "set OLIVEPRESS_DATA_DIR to another one")
    found = f"{path} can be written, {free_bytes / 1e9:.1f} GB free"
    if free_bytes < LOW_DISK_BYTES:
        return check("data directory", "warn", found, "free some space, or set OLIVEPRESS_DATA_DIR to another disk")
    return check("data directory", "ok", found)


def _stack(here: Json | None, *, is_needed: bool) -> Iterator[Json]:
    """The API, and through it the parts behind it; where it does not answer, nothing is known of them."""
    try:
        with connect() as client:
            answer = client.healthz()
            yield _api(client.url, answer["version"])
            yield from client.health()
            yield from toolchain_checks(client.workers(), here)
    except OlivepressError as error:
        yield check("api", "fail" if is_needed else "warn", *_what_and_what_now(error))
        yield from toolchain_checks([], here)


def _api(url: str, its_version: str) -> Json:
    found = f"{url} answers, version {its_version}"
    if its_version == olivepress.__version__:
        return check("api", "ok", found)
    ours = olivepress.__version__
    return check("api", "warn", f"{found}; this client is {ours}", f"run: pip install olivepress=={its_version}")


def _what_and_what_now(error: OlivepressError) -> tuple[str, str]:
    what, _, what_now = str(error).partition("; ")
    return what, what_now or "see `olivepress up`"

"""Which toolchain each live worker has, and this machine; part of `olivepress doctor`."""

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from olivepress.cli.checks import Json, check
from olivepress.errors import OlivepressError
from olivepress.own_process import Program, ask

VERSIONS = Program("workers.toolchains.versions", "the look at the toolchain", time_limit_s=60.0)
HERE = "this machine"
SHOWN_CHARACTERS = 8


def local_toolchain() -> Json | None:
    """{"toolchain", "fingerprint"} of this Python, as a worker of it would say them; None: it could not be asked."""
    with tempfile.TemporaryDirectory(prefix="olivepress-doctor-", ignore_cleanup_errors=True) as directory:
        try:
            with (Path(directory) / "log").open("wb") as log:
                return ask(VERSIONS, {}, Path(directory), log=log)
        except OlivepressError:
            return None


def toolchain_checks(workers: Iterable[Json], here: Json | None) -> Iterator[Json]:
    """A line for each toolchain that there is, with who has it, and one on whether the live workers agree."""
    # One without memory for steps only publishes, and loads no toolchain.
    alive = [worker for worker in workers if worker["alive"] and worker.get("memory_bytes", 1)]
    owners: dict[str, list[str]] = defaultdict(list)
    versions: dict[str, Mapping[str, Any]] = {}
    for name, owner in [*((worker["id"], worker) for worker in alive), *([(HERE, here)] if here else [])]:
        owners[owner["fingerprint"]].append(name)
        versions[owner["fingerprint"]] = owner["toolchain"]
    for fingerprint, names in owners.items():
        listed = ", ".join(f"{name} {number}" for name, number in versions[fingerprint].items())
        yield check(f"toolchain {fingerprint[:SHOWN_CHARACTERS]}", "ok", f"on {', '.join(names)}: {listed}")
    if cold := [worker["id"] for worker in alive if not worker["architectures"]]:
        yield check(
            "toolchains",
            "warn",
            f"not loaded yet by {', '.join(cold)}",
            "it takes a worker half a minute at most; after that its log has the reason",
        )
    if alive:
        yield _agreement(alive)


def _agreement(alive: list[Json]) -> Json:
    if len({worker["fingerprint"] for worker in alive}) == 1:
        return check(
            "toolchains", "ok", f"all {len(alive)} live workers agree" if len(alive) > 1 else "one live worker"
        )
    differing = sorted(
        name
        for name in {name for worker in alive for name in worker["toolchain"]}
        if len({worker["toolchain"].get(name) for worker in alive}) > 1
    )
    told = "; ".join(f"{name} is {_by_version(name, alive)}" for name in differing) or "their kinds of machine differ"
    what_now = (
        "install the same versions on all (--constraint requirements.lock); until then none reuses another's work"
    )
    return check("toolchains", "warn", f"the live workers disagree: {told}", what_now)


def _by_version(name: str, alive: list[Json]) -> str:
    by_version: dict[str, list[str]] = defaultdict(list)
    for worker in alive:
        by_version[worker["toolchain"].get(name) or "missing"].append(worker["id"])
    return ", ".join(f"{number} on {' and '.join(ids)}" for number, ids in sorted(by_version.items()))

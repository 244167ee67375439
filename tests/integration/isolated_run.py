"""A worker in one process, for a test that watches it from outside.

The orders are a JSON object: {"data_dir", "root": of the checkpoints, "steps": package of the steps' code, "preload":
its module, "recipes": own ones, "batches": manifests, "validated": ids of the jobs that are seen through, the others
being built and no more, "kill": whether the first conversion is killed}. What came of the attempts is written into
`data_dir`/outcome.json, with the progress that was seen in the rows meanwhile.
"""

import json
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import select, update

from olivepress.database import recipes
from olivepress.database.migrations import upgrade
from olivepress.database.sessions import Database
from olivepress.database.tables import AttemptRow, StepRow
from olivepress.jobs import StepId, StepKind, StepState
from olivepress.manifest import parse_manifest
from olivepress.recipes.files import parse_recipe
from olivepress.submission import submit
from tests.integration.execution_cases import runtime_over
from workers import attempt, lease
from workers.child import StepCode
from workers.child_process import describe_toolchain, start_forkserver
from workers.runtime import Runtime

LOOK_EVERY_S = 0.02
BUILDING = (StepKind.INGEST, StepKind.CONVERT, StepKind.QUANTIZE, StepKind.PACKAGE)
DATABASE, WORKSPACES, OUTCOME = "olivepress.sqlite", "workspaces", "outcome.json"


def main(file: Path) -> None:
    """Do what the file says. Called with `python -c`, for children would import a program's file anew each."""
    orders = json.loads(file.read_text())
    data_dir, code = Path(orders["data_dir"]), StepCode(orders["steps"], orders["preload"])
    start_forkserver(code)
    database = Database(f"sqlite:///{data_dir / DATABASE}")
    upgrade(database)
    runtime = runtime_over(database, data_dir, checkpoint_roots=orders["root"])
    runtime.code = code
    for values in orders["recipes"]:
        with database.write() as session:
            recipes.add(session, "default", parse_recipe(values, "the test"))
    for batch in orders["batches"]:
        submit(database, parse_manifest(batch), [Path("/")])
    describe_toolchain(code)
    # A tiny conversion is over before a row would show much of it.
    lease.LOOK_EVERY_S = lease.SHOW_PROGRESS_EVERY_S = LOOK_EVERY_S
    seen: list[tuple[int, str, float]] = []
    stop = threading.Event()
    threads = [threading.Thread(target=_look, args=(database, seen, stop))]
    if orders["kill"]:
        threads.append(threading.Thread(target=_kill_a_conversion, args=(runtime.workspaces, stop)))
    for thread in threads:
        thread.start()
    try:
        left = _run_all(runtime, orders["validated"])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    (data_dir / OUTCOME).write_text(json.dumps(_outcome(database, seen) | {"left": left}))
    database.dispose()


def _run_all(runtime: Runtime, validated: list[int]) -> list[str]:
    """Run steps while any is queued; gives what attempts left of their workspaces."""
    wanted = StepRow.job_id.in_(validated) | StepRow.kind.in_(BUILDING)
    left: list[str] = []
    while True:
        with runtime.database.write() as session:
            # The wait before another attempt is over.
            session.execute(update(StepRow).where(StepRow.state == StepState.QUEUED).values(run_at=0.0))
            queued = select(StepRow.id).where(StepRow.state == StepState.QUEUED, wanted).order_by(StepRow.id)
            step_id = session.scalars(queued).first()
        if step_id is None:
            return left
        attempt.run(StepId(step_id), runtime)
        left += [str(path) for path in runtime.workspaces.iterdir()]


def _look(database: Database, seen: list[tuple[int, str, float]], stop: threading.Event) -> None:
    """What a client would see of the running steps: phases and shares, each once."""
    while not stop.wait(LOOK_EVERY_S):
        with database.read() as session:
            running = select(StepRow.id, StepRow.phase, StepRow.share).where(StepRow.state == StepState.RUNNING)
            rows = [tuple(row) for row in session.execute(running) if row.phase is not None]
        seen += [row for row in rows if row not in seen]


def _kill_a_conversion(workspaces: Path, stop: threading.Event) -> None:
    while not stop.wait(LOOK_EVERY_S):
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                directory = process.cwd()
                # The builder writes there; the keeper, its parent, stays where the worker is.
                if directory.startswith(str(workspaces)) and (Path(directory) / "builder").exists():
                    process.send_signal(signal.SIGKILL)
                    return


def _outcome(database: Database, seen: list[tuple[int, str, float]]) -> dict[str, Any]:
    of_attempt = (AttemptRow.outcome, AttemptRow.signal, AttemptRow.error_message, AttemptRow.log_tail)
    columns = (StepRow.id, StepRow.job_id, StepRow.kind, *of_attempt)
    query = select(*columns).join(AttemptRow, AttemptRow.step_id == StepRow.id).order_by(AttemptRow.id)
    with database.read() as session:
        attempts = [dict(row) for row in session.execute(query).mappings()]
        validated = select(StepRow.result).where(StepRow.kind == "validate", StepRow.result.is_not(None))
        certificates = [result["report"]["certificate"] for result in session.scalars(validated)]
    return {"attempts": attempts, "progress": seen, "certificates": certificates}

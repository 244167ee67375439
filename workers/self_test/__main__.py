"""Runs the self test's steps as a worker runs steps, and takes the time of each."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from olivepress.errors import OlivepressError, RuntimeCrashed
from olivepress.jobs import StepKind
from olivepress.own_process import ProgressListener, answer_with
from olivepress.recipes.recipe import recipe_named
from olivepress.steps import JobFacts, StepResult, spec_of
from workers.attempt_log import AttemptLog
from workers.child import ChildRequest, Failure, StepCode, Success
from workers.child_process import ChildProcess, describe_toolchain, start_forkserver
from workers.workspace import Workspace, attempt_workspace

CODE = StepCode(steps="workers.self_test")
RECIPE = "cpu-int4"
LISTEN_S = 0.2
LAST_WORD_TO_END_S = 5.0
LOG_LINES = 15
Part = dict[str, Any]


def self_test(request: dict[str, Any], report_progress: ProgressListener) -> dict[str, Any]:
    """Press a tiny checkpoint; stops at the first part that fails.

    Args:
        request: {"directory": an empty one}

    Returns:
        {"parts": [{"name", "is_ok", "seconds", "detail", "log": the last lines of a part that failed}],
        "cold_s": all of it, "warm_s": without loading the toolchain, as on a worker that runs}
    """
    directory, parts = Path(request["directory"]), []
    started = time.perf_counter()
    for part in _parts(directory, report_progress):
        parts.append(part)
        if not part["is_ok"]:
            break
    cold_s = time.perf_counter() - started
    return {"parts": parts, "cold_s": cold_s, "warm_s": cold_s - parts[0]["seconds"]}


def _parts(directory: Path, report_progress: ProgressListener) -> Iterator[Part]:
    report_progress("loading the toolchain", 0.0)
    started = time.perf_counter()
    start_forkserver(CODE)
    try:
        architectures = describe_toolchain(CODE)
    except EOFError:
        yield _part("toolchain", started, "it cannot be loaded; install olivepress[worker] again", is_ok=False)
        return
    yield _part("toolchain", started, f"loads, and builds {len(architectures)} architectures")
    job = JobFacts(0, str(directory / "checkpoint"), None, recipe_named(RECIPE), [], None)
    done: dict[StepKind, StepResult] = {}
    artifact = None
    for share, kind in ((0.5, StepKind.INGEST), (0.6, StepKind.CONVERT), (0.75, StepKind.PACKAGE)):
        report_progress(kind.value, share)
        spec = spec_of(kind, job, done) | {"roots": [str(directory)], "base": None}
        part, result, output = _step(kind, spec, artifact, directory)
        yield part | ({"detail": _found(kind, result)} if part["is_ok"] else {})
        done[kind] = StepResult(result)
        artifact = output if kind is not StepKind.INGEST else None
    report_progress("chatting", 0.8)
    part, result, _ = _step(StepKind.VALIDATE, {}, artifact, directory)
    if not part["is_ok"]:
        yield part | {"name": "chat"}
        return
    yield from _chats(result)


def _chats(result: dict[str, Any]) -> Iterator[Part]:
    answer = f"“{result['answer']}”"
    yield {"name": "chat", "is_ok": True, "seconds": result["chat_s"], "detail": answer, "log": ""}
    certificate = result["certificate"]
    if certificate is None:
        return
    runtime = certificate["runtime"].get("foundry-local-sdk", "")
    detail = (
        certificate["problem"] or f"the same three times by the runtime {runtime}, network: {certificate['network']}"
    )
    yield {
        "name": "Foundry Local",
        "is_ok": certificate["status"] == "passed",
        "seconds": result["certificate_s"],
        "detail": detail,
        "log": "",
    }


def _step(
    kind: StepKind, spec: dict[str, Any], artifact: Path | None, directory: Path
) -> tuple[Part, dict[str, Any], Path]:
    """Run one step in a child of the forkserver; gives its part, its result and where its artifact lies."""
    started, kept = time.perf_counter(), directory / f"{kind.value}-output"
    with attempt_workspace(directory, int(started * 1000), 1) as workspace:
        request = ChildRequest(
            kind=kind,
            code=CODE,
            spec=spec,
            inputs={"artifact": artifact} if artifact else {},
            output=workspace.output,
            scratch=workspace.scratch,
            log_file=workspace.log_file,
            exclusive_lock=directory / "host.lock",
        )
        try:
            outcome = _outcome(request)
        except OlivepressError as error:
            outcome = Failure(type(error).__name__, str(error), may_retry=False, cpu_s=0.0)
        workspace.output.rename(kept)
        if isinstance(outcome, Success):
            return _part(kind.value, started, ""), outcome.result, kept
        return _part(kind.value, started, outcome.message, is_ok=False) | {"log": _last_lines(workspace)}, {}, kept


def _outcome(request: ChildRequest) -> Success | Failure:
    child = ChildProcess(request)
    try:
        while True:
            message = child.receive(LISTEN_S)
            if isinstance(message, Success | Failure):
                child.end(LAST_WORD_TO_END_S)
                return message
    except EOFError:
        child.end()
        how = f"by signal {child.signal}" if child.signal else f"with exit code {child.exit_code}"
        raise RuntimeCrashed(f"its process ended {how}; see how much memory this machine has left") from None
    finally:
        child.end()


def _found(kind: StepKind, result: dict[str, Any]) -> str:
    if kind is StepKind.INGEST:
        return f"a {result['architecture']} of {result['parameters']:,} parameters, made and checked"
    if kind is StepKind.CONVERT:
        return f"{RECIPE}; correlation with torch {result['parity']['correlation']:.4f}"
    return f"{result['size_bytes'] / 1000:.0f} kB for Foundry Local"


def _last_lines(workspace: Workspace) -> str:
    log = AttemptLog(workspace.log_file)
    log.finish()
    return "\n".join(log.tail().splitlines()[-LOG_LINES:])


def _part(name: str, started: float, detail: str, *, is_ok: bool = True) -> Part:
    return {"name": name, "is_ok": is_ok, "seconds": time.perf_counter() - started, "detail": detail, "log": ""}


if __name__ == "__main__":
    answer_with(self_test)

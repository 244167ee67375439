"""Seal: the report of a later validation is signed; runs in the worker, not in a child."""

from pathlib import Path
from typing import Any

from olivepress.database import remeasuring
from olivepress.database.sessions import Session, seconds_now
from olivepress.errors import TransientError
from olivepress.evidence import report_seal
from olivepress.jobs import StepKind
from olivepress.steps import Done
from workers.steps.publish import key_to_sign_with


def seal(session: Session, job_id: int, done: Done, key_file: Path | None) -> dict[str, Any]:
    """Sign what validate measured; the step's result: {"seal": see `evidence.report_seal`}.

    Raises:
        TransientError: the key cannot be used here, or there is none.
    """
    key = key_to_sign_with(session, key_file)
    if key is None:
        raise TransientError("this worker has no signing key; a worker that has one is to sign the report")
    measured = remeasuring.measured_by(session, job_id)
    report = done[StepKind.VALIDATE].result["report"]
    return {"seal": report_seal.seal(report, measured, key, seconds_now(session))}

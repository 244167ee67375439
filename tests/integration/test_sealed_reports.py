"""The report of a validation is signed as its job's last step, whether the gates passed or not; over real databases."""

from dataclasses import replace
from pathlib import Path

import pytest

from olivepress.database import cancelling, signing_keys, steps, views
from olivepress.database.sessions import Database
from olivepress.evidence.report_seal import verify_report
from olivepress.evidence.signing import SigningKey
from olivepress.job_orders import ValidationOrder
from olivepress.jobs import JobState, StepKind, StepState
from olivepress.measuring_again import validate
from olivepress.recertification import start_due
from olivepress.registry import parse_reference
from olivepress.reports.document import document_of_job
from tests.integration.database_cases import OFFER, claim, claimed, job_of, on_both_databases, step_of, succeed
from tests.integration.execution_cases import run_step, runtime_over
from tests.integration.remeasuring_cases import (
    GATE,
    end_worker,
    everything,
    looked_at,
    published,
    validated,
    worker_with,
)

pytestmark = on_both_databases
SIGNER = replace(OFFER, worker_id="signer", signs=True)


@pytest.fixture
def key_file(database: Database, tmp_path: Path) -> Path:
    """The key of the stack, which has signed before."""
    file = tmp_path / "signing-key.pem"
    with database.write() as session:
        signing_keys.note(session, SigningKey.load_or_create(file).public)
    return file


@pytest.fixture
def version(database: Database) -> str:
    """Published before the stack had a key."""
    version = published(database)
    worker_with(database, "2.2.1")
    return version


def ordered(database: Database, version: str) -> int:
    (job_id,) = validate(database, everything, "default", parse_reference(version), ValidationOrder()).job_ids
    return job_id


def sealed(database: Database, job_id: int, key_file: Path) -> None:
    """A worker with the key is told of the last step."""
    runtime = runtime_over(database, key_file.parent, signing_key_file=key_file)
    run_step(replace(runtime, offer=SIGNER), job_id, StepKind.SEAL)
    assert step_of(database, job_id, StepKind.SEAL).state == StepState.SUCCEEDED


def test_a_report_that_was_signed_is_verified_with_the_stacks_key(
    database: Database, version: str, key_file: Path
) -> None:
    job_id = ordered(database, version)
    assert succeed(database, claimed(database, job_id, StepKind.VALIDATE), validated("2.2.1"))
    assert job_of(database, job_id).state == JobState.RUNNING
    sealed(database, job_id, key_file)
    assert job_of(database, job_id).state == JobState.SUCCEEDED
    key = SigningKey.load(key_file).public
    with database.read() as session:
        document = document_of_job(views.job(session, job_id))
    found = verify_report(document, {key.id: key}.get)
    assert found.is_verified, found.complaints
    assert found.evidence is not None
    assert (found.evidence.version, found.evidence.team) == (version, "default")
    (listed,) = looked_at(database, version)["validations"]
    assert listed["signed_by"] == key.id


def test_what_failed_is_signed_too_before_the_job_has_failed(database: Database, version: str, key_file: Path) -> None:
    job_id = ordered(database, version)
    assert succeed(database, claimed(database, job_id, StepKind.VALIDATE), validated("2.2.1", GATE))
    assert (job_of(database, job_id).state, job_of(database, job_id).error_class) == (JobState.RUNNING, None)
    sealed(database, job_id, key_file)
    job = job_of(database, job_id)
    assert (job.state, job.error_class) == (JobState.FAILED, "GateFailed")
    assert step_of(database, job_id, StepKind.SEAL).state == StepState.SUCCEEDED
    with database.read() as session:
        document = document_of_job(views.job(session, job_id))
    assert (document["verdict"], document["seal"]["evidence"]["job_id"]) == ("failed", job_id)


def test_a_recertification_that_failed_flags_the_version_without_waiting_for_the_signature(
    database: Database, version: str, key_file: Path
) -> None:
    end_worker(database)
    worker_with(database, "2.3.0", "newer")
    (job_id,) = start_due(database, everything).jobs
    assert succeed(database, claimed(database, job_id, StepKind.VALIDATE), validated("2.3.0", GATE))
    flagged = looked_at(database, version)["flags"]["recertification_failed"]
    sealed(database, job_id, key_file)
    assert looked_at(database, version)["flags"]["recertification_failed"] == flagged


def test_only_a_worker_with_the_key_signs(database: Database, version: str, key_file: Path) -> None:
    job_id = ordered(database, version)
    assert succeed(database, claimed(database, job_id, StepKind.VALIDATE), validated("2.2.1"))
    assert claim(database, job_id, StepKind.SEAL) is None
    assert claim(database, job_id, StepKind.SEAL, SIGNER) is not None


def test_a_key_that_cannot_be_used_is_tried_again_later(database: Database, version: str, key_file: Path) -> None:
    job_id = ordered(database, version)
    assert succeed(database, claimed(database, job_id, StepKind.VALIDATE), validated("2.2.1"))
    key_file.chmod(0o644)
    runtime = runtime_over(database, key_file.parent, signing_key_file=key_file)
    run_step(replace(runtime, offer=SIGNER), job_id, StepKind.SEAL)
    row = step_of(database, job_id, StepKind.SEAL)
    assert (row.state, row.error_class) == (StepState.QUEUED, "TransientError")
    assert "others can read" in (row.error_message or "")


def test_a_stack_without_a_key_does_not_wait_for_a_signature(database: Database, version: str) -> None:
    job_id = ordered(database, version)
    assert succeed(database, claimed(database, job_id, StepKind.VALIDATE), validated("2.2.1"))
    assert job_of(database, job_id).state == JobState.SUCCEEDED
    assert looked_at(database, version)["validations"][0]["signed_by"] is None


def test_a_job_that_is_cancelled_before_its_report_is_signed_is_cancelled(
    database: Database, version: str, key_file: Path
) -> None:
    job_id = ordered(database, version)
    assert succeed(database, claimed(database, job_id, StepKind.VALIDATE), validated("2.2.1", GATE))
    with database.write() as session:
        cancelling.cancel_job(session, job_id)
    assert job_of(database, job_id).state == JobState.CANCELLED
    assert claim(database, job_id, StepKind.SEAL, SIGNER) is None


def test_a_validation_that_broke_leaves_nothing_to_sign(database: Database, version: str, key_file: Path) -> None:
    job_id = ordered(database, version)
    held = claimed(database, job_id, StepKind.VALIDATE)
    ending = steps.Ending(steps.AttemptOutcome.FAILED, error_class="BadArtifact", error_message="it is damaged")
    with database.write() as session:
        assert steps.fail(session, held, ending, may_retry=False)
    assert job_of(database, job_id).state == JobState.FAILED
    assert step_of(database, job_id, StepKind.SEAL).state == StepState.CANCELLED

"""Publish: a model version, its alias and its overlay in one transaction; runs in the worker, not in a child."""

import json
from pathlib import Path
from typing import Any

from olivepress.database import imports, rungs, signing_keys
from olivepress.database.sessions import Session, seconds_now
from olivepress.database.versions import Publication, Published, PublishedJob, publish_version, published_job
from olivepress.errors import PermanentError, TransientError
from olivepress.evidence.sealing import Subject, overlay
from olivepress.evidence.signing import SigningKey
from olivepress.foundry.inference_model import fitting, inference_model_json
from olivepress.jobs import StepKind, digest_of
from olivepress.recipes.recipe import FoundrySettings, Recipe
from olivepress.registry import VersionFlag
from olivepress.reports.document import unmeasured
from olivepress.steps import Done
from olivepress.store import Store


def publish(session: Session, store: Store, job_id: int, done: Done, key_file: Path | None = None) -> Published:
    """Publish what the job's steps made; the caller commits, or rolls all of it back.

    Args:
        key_file: holds the key that signs the version. It is read for each publication, so that no worker need be
            started again when it is replaced, and none keeps it in memory.

    Raises:
        QuotaExceeded: the team has as much as it may have.
        TransientError: the key cannot be used here, or there is none and the stack signs what it publishes.
    """
    key = key_to_sign_with(session, key_file)
    job = published_job(session, job_id)
    package = store.manifest(done[StepKind.PACKAGE].artifact_digest or "")
    unvalidated = imports.unvalidated_reason(session, job_id)
    if unvalidated is None:
        report = done[StepKind.VALIDATE].result["report"] | rungs.report_part(session, job_id)
    else:
        report = unmeasured(unvalidated, package.size_bytes)
    provenance = _provenance(job, done, report)

    def write_overlay(number: int) -> tuple[str, int]:
        subject = Subject(job.team, job.model_name, number, provenance, report, seconds_now(session))
        artifact = store.extend(package, overlay(package, _description(job, number, done), subject, key))
        return artifact.digest, artifact.size_bytes

    wanted = Publication(
        job_id=job_id,
        team=job.team,
        model_name=job.model_name,
        alias=job.alias,
        package_digest=package.digest,
        recipe_name=job.recipe["name"],
        precision=_precision(job, done),
        family=done[StepKind.INGEST].result["family"],
        report=report,
        provenance=provenance,
        flags={} if unvalidated is None else {VersionFlag.UNVALIDATED: unvalidated},
    )
    return publish_version(session, wanted, write_overlay)


def key_to_sign_with(session: Session, key_file: Path | None) -> SigningKey | None:
    """The key in this file, which is known to the stack from now on; None where neither has one.

    Raises:
        TransientError: the key cannot be used here, or there is none and the stack signs what it publishes.
    """
    if key_file is None:
        if signing_keys.has_any(session):
            raise TransientError(
                "this worker has no signing key, and what this stack publishes is signed; a worker that has one is to "
                "publish it (OLIVEPRESS_SIGNING_KEY_FILE)"
            )
        return None
    try:
        key = SigningKey.load(key_file)
    except PermanentError as error:
        # Nothing of the job is wrong, and another worker may have a better one.
        raise TransientError(str(error)) from error
    signing_keys.note(session, key.public)
    return key


def _description(job: PublishedJob, number: int, done: Done) -> bytes:
    recipe, ingested = Recipe.from_dict(job.recipe), done[StepKind.INGEST].result
    # A model that was made elsewhere keeps its own settings.
    foundry = FoundrySettings(**ingested["foundry"]) if ingested.get("foundry") else recipe.foundry
    description = inference_model_json(
        model=job.model_name,
        number=number,
        description=f"{job.checkpoint_name} at {_precision(job, done)}, by recipe {recipe.name} v{recipe.version}",
        prompt_template=done[StepKind.PACKAGE].result["prompt_template"],
        foundry=fitting(foundry, ingested["context_length"]),
    )
    return (json.dumps(description, indent=2, ensure_ascii=False) + "\n").encode()


def _precision(job: PublishedJob, done: Done) -> str:
    """The recipe's; of a model that was made elsewhere, what its graph was found to have."""
    return str(done[StepKind.INGEST].result.get("precision") or job.recipe["precision"])


def _provenance(job: PublishedJob, done: Done, report: dict[str, Any]) -> dict[str, Any]:
    ingested = done[StepKind.INGEST].result
    return {
        "schema_version": 1,
        "checkpoint": {
            "name": job.checkpoint_name,
            "digest": ingested["checkpoint_digest"],
            "kind": ingested["kind"],
            "architecture": ingested["architecture"],
            "base_digest": ingested["base"]["checkpoint_digest"] if ingested["base"] else None,
            **({"declared_name": ingested["declared_name"]} if ingested.get("declared_name") else {}),
            **({"made_from": ingested["source"]["checkpoint_digest"]} if ingested.get("source") else {}),
        },
        "recipe": job.recipe | {"precision": _precision(job, done)},
        "step_keys": job.step_keys,
        "toolchain_fingerprint": job.fingerprint,
        "package_digest": done[StepKind.PACKAGE].artifact_digest,
        "report_digest": digest_of(report),
    }

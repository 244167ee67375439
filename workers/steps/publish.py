"""Publish: a model version, its alias and its overlay in one transaction; runs in the worker, not in a child."""

import hashlib
import json
from typing import Any

from olivepress.database.sessions import Session
from olivepress.database.versions import Publication, Published, PublishedJob, publish_version, published_job
from olivepress.foundry import INFERENCE_MODEL_FILE, SUMS_FILE, fitting, inference_model_json, sums_text
from olivepress.jobs import StepKind, digest_of
from olivepress.recipes import Recipe
from olivepress.steps import Done
from olivepress.store import Store
from olivepress.store.manifest import Manifest

PROVENANCE_FILE = "olivepress.json"


def publish(session: Session, store: Store, job_id: int, done: Done) -> Published:
    """Publish what the job's steps made; the caller commits, or rolls all of it back."""
    job = published_job(session, job_id)
    package = store.manifest(done[StepKind.PACKAGE].artifact_digest or "")
    report = done[StepKind.VALIDATE].result["report"]
    provenance = _provenance(job, done, report)

    def write_overlay(number: int) -> tuple[str, int]:
        artifact = store.extend(package, _overlay(job, number, package, done, provenance))
        return artifact.digest, artifact.size_bytes

    wanted = Publication(
        job_id=job_id,
        team=job.team,
        model_name=job.model_name,
        alias=job.alias,
        package_digest=package.digest,
        recipe_name=job.recipe["name"],
        precision=job.recipe["precision"],
        family=done[StepKind.INGEST].result["family"],
        report=report,
        provenance=provenance,
    )
    return publish_version(session, wanted, write_overlay)


def _overlay(
    job: PublishedJob, number: int, package: Manifest, done: Done, provenance: dict[str, Any]
) -> dict[str, bytes]:
    recipe = Recipe.from_dict(job.recipe)
    description = inference_model_json(
        model=job.model_name,
        number=number,
        description=f"{job.checkpoint_name} at {recipe.precision.value}, by recipe {recipe.name} v{recipe.version}",
        prompt_template=done[StepKind.PACKAGE].result["prompt_template"],
        foundry=fitting(recipe.foundry, done[StepKind.INGEST].result["context_length"]),
    )
    files = {
        INFERENCE_MODEL_FILE: _json(description),
        PROVENANCE_FILE: _json(provenance | {"model": job.model_name, "version": number}),
    }
    sums = {file.path: file.sha256 for file in package.files} | {
        path: hashlib.sha256(content).hexdigest() for path, content in files.items()
    }
    return files | {SUMS_FILE: sums_text(sums).encode()}


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
        },
        "recipe": job.recipe,
        "step_keys": job.step_keys,
        "toolchain_fingerprint": job.fingerprint,
        "package_digest": done[StepKind.PACKAGE].artifact_digest,
        "report_digest": digest_of(report),
    }


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()

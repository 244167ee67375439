"""Use case: an ONNX model directory that was made elsewhere, or an exported version, is to become a version here."""

from pathlib import Path
from typing import Any

from olivepress.database.batches import known_batch
from olivepress.database.imports import WantedImport, insert_import
from olivepress.database.quotas import check_quota
from olivepress.database.sessions import Database
from olivepress.gates import parse_limits
from olivepress.job_orders import ImportOrder
from olivepress.quotas import Wanted
from olivepress.recipes.recipe import Precision, Recipe
from olivepress.registry import check_alias, check_model_name, check_text, name_from_directory
from olivepress.soak import parse_soak
from olivepress.steps import SourcePlace
from olivepress.submission import Submitted

IMPORT_RECIPE = "import"


def submit_import(database: Database, order: ImportOrder, idempotency_key: str | None = None) -> Submitted:
    """A batch with one job; a worker reads the directory later.

    Args:
        idempotency_key: the same key of the same team gives the batch that it gave first.

    Raises:
        BadManifest: a name cannot be used, or there is no reason why it is not validated.
        BadRecipe: a gate cannot be.
        QuotaExceeded: the team has as many jobs or versions as it may have.
    """
    check_alias(order.alias)
    name = check_model_name(order.name or name_from_directory(Path(order.path.rstrip("/\\")).name))
    if order.unvalidated is not None:
        check_text(order.unvalidated, "the reason why it is not validated")
    wanted = WantedImport(
        team=order.team,
        model_name=name,
        path=order.path,
        recipe=import_recipe(order.gates),
        alias=order.alias,
        priority=order.priority,
        pool=order.pool,
        prompts=order.prompts or (),
        soak=parse_soak(order.soak),
        family=order.family,
        source=SourcePlace(order.source, order.base) if order.source else None,
        unvalidated=order.unvalidated,
    )
    with database.write() as session:
        if idempotency_key and (known := known_batch(session, order.team, idempotency_key)):
            return Submitted(*known, is_new=False)
        # How large it is only a worker knows; publishing looks at that.
        check_quota(session, order.team, Wanted(1))
        batch_id, job_id, is_new = insert_import(session, wanted, idempotency_key)
    return Submitted(batch_id, [job_id], is_new)


def import_recipe(gates: dict[str, Any] | None) -> Recipe:
    """The recipe of an imported model: only its gates mean anything; ingest finds the precision.

    Raises:
        BadRecipe: a gate cannot be.
    """
    return Recipe(
        name=IMPORT_RECIPE,
        version=1,
        summary="Imported: it was made elsewhere, at the precision that its graph has.",
        # Nothing is built by it; the version has the precision that ingest finds in the graph.
        precision=Precision.FP32,
        gates=parse_limits(gates or {}),
    )

"""The Celery tasks: one a step kind, one line each. A message carries a step id."""

from celery import Celery

from olivepress.jobs import StepId, StepKind
from olivepress.queues import task_name
from workers import attempt
from workers.runtime import Runtime


def register(app: Celery, runtime: Runtime) -> None:
    """Bind the tasks to this worker's runtime."""
    for kind in StepKind:
        app.task(name=task_name(kind))(lambda step_id: attempt.run(StepId(step_id), runtime))

"""The Celery tasks: one a step kind, all alike. A message carries a step id."""

from celery import Celery

from olivepress.jobs import StepId, StepKind
from olivepress.queues import task_name
from workers import attempt
from workers.runtime import Runtime


def register(app: Celery, runtime: Runtime) -> None:
    """Bind the tasks to this worker's runtime."""

    def run_step(step_id: int) -> str:
        # To Celery a task that ran is a success; what Flower shows as its result says how the attempt ended.
        return attempt.run(StepId(step_id), runtime)

    for kind in StepKind:
        app.task(name=task_name(kind), shared=False)(run_step)

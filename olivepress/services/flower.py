"""Flower behind a password, watching this stack's Celery."""

import os

from olivepress.errors import ServiceUnavailable
from olivepress.queues import celery_app
from olivepress.settings import Settings

USER = "olivepress"
# What is done to which checkpoint by which recipe (`args`), how far, and where; Celery's own ids say nothing to people.
TASK_COLUMNS = "name,args,state,worker,received,started,runtime"


def serve(settings: Settings) -> None:
    """Run Flower until SIGTERM.

    Raises:
        ServiceUnavailable: no password is set; without one its pages would be open.
    """
    if settings.flower_password is None:
        raise ServiceUnavailable("Flower needs a password; set OLIVEPRESS_FLOWER_PASSWORD")
    # By environment: an argument would be seen by everybody on this machine.
    os.environ["FLOWER_BASIC_AUTH"] = f"{USER}:{settings.flower_password.get_secret_value()}"
    arguments = [
        "flower",
        f"--address={settings.flower_host}",
        f"--port={settings.flower_port}",
        "--inspect-timeout=2000",
        f"--tasks-columns={TASK_COLUMNS}",
    ]
    celery_app(settings).start([*arguments, "--logging=warning"])

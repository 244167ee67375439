"""Shorter leases for tests: every time of the execution that follows the lease, in the product's own proportions.

The product has no setting for them. They are set here before a service is imported, since some modules take them by
name.
"""

from dataclasses import replace
from importlib import import_module
from typing import Any

from olivepress import jobs
from olivepress.database import workers

LEASE_S = jobs.LEASE_S
# A worker's own loop looks once a second, and says at most that often that it lives.
SEEN_AT_MOST_EVERY_S = 1.0
RETRY_CAP_S = 2.0
# In tests that kill at random, only the steps that were ordered to fail may fail.
MANY_ATTEMPTS = 10_000


def shorten(lease_s: float) -> None:
    """Make the lease of steps this long; in this process, before services are imported."""
    share = lease_s / LEASE_S
    jobs.LEASE_S = lease_s
    jobs.HEARTBEAT_EVERY_S *= share
    jobs.SELF_FENCE_S *= share
    workers.SEEN_EVERY_S = max(SEEN_AT_MOST_EVERY_S, workers.SEEN_EVERY_S * share)
    workers.ALIVE_FOR_S = max(4 * SEEN_AT_MOST_EVERY_S, workers.ALIVE_FOR_S * share)


def shorten_scheduler(lease_s: float) -> None:
    """The same for the times that are the scheduler's own."""
    app, leader = import_module("scheduler.app"), import_module("scheduler.leader")
    share = lease_s / LEASE_S
    leader.LEASE_S = max(2.0, leader.LEASE_S * share)
    make_duties = app.Scheduler._make_duties

    def shortened(self: Any, settings: Any) -> list[Any]:
        return [replace(duty, every_s=duty.every_s * share) for duty in make_duties(self, settings)]

    app.Scheduler._make_duties = shortened


def never_give_up() -> None:
    """Any number of attempts, soon after each other."""
    jobs.MAX_ATTEMPTS = MANY_ATTEMPTS
    jobs.RETRY_CAP_S = RETRY_CAP_S
    jobs.RETRY_BASE_S = RETRY_CAP_S / 4

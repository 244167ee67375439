"""What is submitted: batches of several teams, decided by the seed, and how each of their jobs must end."""

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from olivepress.jobs import JobState
from tests.doubles.orders import Order, Orders, write_checkpoint

TEAMS = ("alpha", "beta", "gamma")
RECIPES = ("cpu-int4", "cpu-int8", "cpu-fp32")
BATCH_EVERY_S = 5.0
TIME_LIMIT_S = 6.0
# Endings that are tried again: the job succeeds all the same.
PASSING = ("crash", "killed", "exit", "transient", "bug", "hang")


@dataclass(frozen=True)
class PlannedCheckpoint:
    """A directory with orders; `error_class` is what its jobs end with, None where they succeed."""

    path: Path
    name: str
    error_class: str | None = None


@dataclass(frozen=True)
class PlannedBatch:
    """What one team submits at once, how far into the run (0 to 1), and when it changes its mind."""

    number: int
    team: str
    checkpoints: tuple[PlannedCheckpoint, ...]
    recipes: tuple[str, ...]
    at_share: float
    cancel_after_s: float | None = None

    @property
    def manifest(self) -> dict[str, Any]:
        """As a client sends it."""
        return {
            "team": self.team,
            "name": f"chaos-{self.number}",
            "recipes": list(self.recipes),
            "checkpoints": [{"path": str(found.path), "name": found.name} for found in self.checkpoints],
            "priority": self.number % 10,
        }

    @property
    def key(self) -> str:
        """Its idempotency key."""
        return f"chaos-{self.number}"


@dataclass
class Plan:
    """All that is submitted."""

    batches: list[PlannedBatch] = field(default_factory=list)

    @property
    def jobs(self) -> int:
        """How many jobs these are."""
        return sum(len(batch.checkpoints) * len(batch.recipes) for batch in self.batches)

    def without_cancels(self) -> "Plan":
        """The same, and nobody changes his mind."""
        return Plan([replace(batch, cancel_after_s=None) for batch in self.batches])

    def endings(self, batch: PlannedBatch, path: str) -> tuple[set[JobState], str | None]:
        """States in which a job of this batch and checkpoint may end, and the error class if it fails."""
        found = next(each for each in batch.checkpoints if str(each.path) == path)
        ending = JobState.FAILED if found.error_class else JobState.SUCCEEDED
        if batch.cancel_after_s is None:
            return {ending}, found.error_class
        return {ending, JobState.CANCELLED}, found.error_class


def make_plan(seed: int, seconds: float, directory: Path) -> Plan:
    """The plan of a seed, and its checkpoints on disk."""
    chance = random.Random(seed)
    known: list[PlannedCheckpoint] = []
    plan = Plan()
    count = max(4, round(seconds / BATCH_EVERY_S))
    for number in range(1, count + 1):
        checkpoints = _checkpoints(chance, known, directory, number)
        # Most come early, so that the end of the run is not their first second.
        share = chance.uniform(0.0, 0.85) if number > 2 else 0.0
        batch = PlannedBatch(
            number=number,
            team=chance.choice(TEAMS),
            checkpoints=checkpoints,
            recipes=tuple(chance.sample(RECIPES, chance.choice((1, 2, 2)))),
            at_share=share,
            cancel_after_s=chance.uniform(0.2, 2.5) if number % 4 == 3 else None,
        )
        plan.batches.append(batch)
    plan.batches.sort(key=lambda batch: batch.at_share)
    return plan


def _checkpoints(
    chance: random.Random, known: list[PlannedCheckpoint], directory: Path, number: int
) -> tuple[PlannedCheckpoint, ...]:
    """Two or three: new ones, one that an earlier batch had, or new content under an earlier name."""
    found: dict[str, PlannedCheckpoint] = {}
    for place in range(chance.choice((2, 2, 3))):
        kind = chance.random()
        if known and kind < 0.2:
            chosen = chance.choice(known)
        else:
            name = chance.choice(known).name if known and kind < 0.35 else f"model-{number}-{place}"
            chosen = _new_checkpoint(chance, directory / f"checkpoint-{number}-{place}", name)
            known.append(chosen)
        found[chosen.name] = chosen
    return tuple(found.values())


def _new_checkpoint(chance: random.Random, path: Path, name: str) -> PlannedCheckpoint:
    steps = {
        "ingest": {"seconds": chance.uniform(0, 0.3)},
        "convert": {
            "seconds": chance.uniform(0.1, 2.0),
            "bytes": chance.randrange(30_000, 600_000),
            "log_lines": chance.randrange(60),
            "allocate_bytes": chance.randrange(30_000_000),
        },
        "package": {"seconds": chance.uniform(0, 0.3)},
        "validate": {"seconds": chance.uniform(0, 0.5)},
    }
    error_class = None
    kind = chance.random()
    if kind < 0.3:
        steps[chance.choice(("ingest", "convert"))] |= {"ending": chance.choice(PASSING), "times": 1}
    elif kind < 0.38:
        steps["convert"]["ending"], error_class = "fail", "ConversionFailed"
    elif kind < 0.45:
        steps["validate"]["ending"], error_class = "gate", "GateFailed"
    elif kind < 0.6:
        steps["convert"] |= {"grandchild": chance.choice(("group", "session")), "ignore_signals": True}
    orders = Orders({step: Order(**order) for step, order in steps.items()})
    write_checkpoint(path, chance.randrange(2**32), orders)
    return PlannedCheckpoint(path, name, error_class)

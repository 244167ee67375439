"""Which worker a waiting step is sent to: only where it fits, fair between teams, the smallest fitting first. Pure.

A worker offers memory in equal parts to its slots: the part is the allowance of each step that it runs. A step needs
memory and disk (predicted), a toolchain fingerprint (that of its key) and, where its job names one, a pool. Publishing
needs the signing key, once the stack has signed.

Between teams goes the one with the fewest steps in flight for its weight; of equals the one that was served least for
its weight (start-time fair queueing, Goyal, Vin and Cheng, SIGCOMM 1996). Within a team: rank, then age.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from olivepress.jobs import StepId

WINDOW_PER_SLOT = 2
GIB = 2**30


@dataclass(frozen=True)
class Need:
    """What a step asks of a worker: bytes, and where they must be."""

    memory_bytes: int = 0
    scratch_bytes: int = 0
    pool: str | None = None
    fingerprint: str | None = None
    publishes: bool = False


@dataclass(frozen=True)
class Room:
    """What a worker offers to each of its steps; nothing: it only publishes. Equal rooms are one class of workers."""

    pools: frozenset[str]
    allowance_bytes: int
    fingerprints: frozenset[str]
    disk_free_bytes: int
    may_publish: bool = True
    """It has the signing key, or the stack has never signed."""

    def fits(self, need: Need) -> bool:
        """Whether a step with this need can run here."""
        return (
            need.memory_bytes <= self.allowance_bytes
            and need.scratch_bytes <= self.disk_free_bytes
            and (need.pool is None or need.pool in self.pools)
            and (need.fingerprint is None or need.fingerprint in self.fingerprints)
            and (not need.publishes or self.may_publish)
        )


@dataclass
class Place:
    """A living worker and how busy it is: `load` counts the steps that it runs and those that it was told of."""

    worker_id: str
    room: Room
    slots: int
    load: int = 0
    running: int = 0

    @property
    def is_idle(self) -> bool:
        """Whether a step that is sent now starts now."""
        return self.load < self.slots

    @property
    def is_full(self) -> bool:
        """Whether what it was told of has to wait."""
        return self.running >= self.slots

    @property
    def is_open(self) -> bool:
        """Whether another step may be sent: a few wait at the worker, so that no slot waits for the scheduler."""
        return self.load < self.slots * WINDOW_PER_SLOT


@dataclass(frozen=True)
class Waiting:
    """A queued step. Where a worker was told of it and did not take it, another is better.

    `waits_there`: that worker is full, so the step goes only to one that is idle.
    """

    step_id: StepId
    need: Need
    sent_to: str | None = None
    waits_there: bool = False


@dataclass
class Fairness:
    """How much each team was served for its weight since the scheduler leads."""

    weights: Mapping[str, int] = field(default_factory=dict)
    _served: dict[str, float] = field(default_factory=dict)

    def weight(self, team: str) -> int:
        """The team's share against others."""
        return self.weights.get(team, 1)

    def enter(self, teams: Collection[str]) -> None:
        """Only these teams have waiting steps: one that comes (back) starts level with the least served of them."""
        present = [self._served[team] for team in teams if team in self._served]
        start = min(present, default=0.0)
        self._served = {team: max(self._served.get(team, start), start) for team in teams}

    def served(self, team: str) -> float:
        """What it got so far, for its weight."""
        return self._served[team]

    def serve(self, team: str) -> None:
        """Note that one of its steps was sent."""
        self._served[team] += 1 / self.weight(team)


def assign(
    waiting: Mapping[str, Iterable[Waiting]], places: list[Place], in_flight: Mapping[str, int], fairness: Fairness
) -> list[tuple[StepId, str]]:
    """Which of the waiting steps go to which worker now. Raises the places' load.

    Args:
        waiting: by team, in the order in which the team wants them.
        in_flight: by team, how many steps run or were sent.

    Returns:
        Pairs of step and worker id, in the order in which to send them.
    """
    fairness.enter(waiting.keys())
    left = {team: list(steps) for team, steps in waiting.items()}
    flying = dict(in_flight)
    sent: list[tuple[StepId, str]] = []
    while left and any(place.is_open for place in places):
        team = min(left, key=lambda name: (flying.get(name, 0) / fairness.weight(name), fairness.served(name), name))
        found = _first_that_fits(left[team], places)
        if found is None:
            del left[team]
            continue
        step, place = found
        left[team].remove(step)
        place.load += 1
        flying[team] = flying.get(team, 0) + 1
        fairness.serve(team)
        sent.append((step.step_id, place.worker_id))
    return sent


def lacks_key(need: Need, rooms: Collection[Room]) -> bool:
    """Whether a step waits for the signing key: nothing is wrong with it, and it has cost its job hours before."""
    return need.publishes and not any(room.may_publish for room in rooms)


def why_nowhere(need: Need, rooms: Collection[Room]) -> str | None:
    """Why none of the living workers could ever take a step, and what to do; None if one could."""
    if any(room.fits(need) for room in rooms):
        return None
    if not need.publishes:
        rooms = [room for room in rooms if room.allowance_bytes]
    if not rooms:
        return "no worker is running; start one: olivepress service worker"
    if lacks_key(need, rooms):
        return (
            "no running worker has the signing key, and what this stack publishes is signed; start one that has it: "
            "OLIVEPRESS_SIGNING_KEY_FILE=FILE olivepress service publisher"
        )
    in_pool = [room for room in rooms if need.pool is None or need.pool in room.pools]
    if not in_pool:
        offered = ", ".join(sorted({pool for room in rooms for pool in room.pools}))
        return (
            f"no worker offers the pool '{need.pool}' (there are: {offered}); start one: "
            f"olivepress service worker --pools {need.pool}"
        )
    where = f" in the pool '{need.pool}'" if need.pool else ""
    largest = max(room.allowance_bytes for room in in_pool)
    if need.memory_bytes > largest:
        return (
            f"it needs {gib(need.memory_bytes)} of memory and the largest worker{where} gives a step {gib(largest)}; "
            f"start one with more memory or fewer slots: olivepress service worker --slots 1 "
            f"--memory {-(-need.memory_bytes // GIB)}GiB"
        )
    if all(need.scratch_bytes > room.disk_free_bytes for room in in_pool):
        free = max(room.disk_free_bytes for room in in_pool)
        return (
            f"it needs {gib(need.scratch_bytes)} of disk for its workspace and the most that a worker{where} has is "
            f"{gib(free)}; free some, or set OLIVEPRESS_WORKSPACE_DIR of a worker to a larger disk"
        )
    return f"no worker{where} has enough memory, enough disk and the step's toolchain at once; see `olivepress workers`"


def gib(size_bytes: int) -> str:
    """A size as people write it."""
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB // 10 else f"{size_bytes / 2**20:.0f} MiB"


def _preference(step: Waiting, place: Place) -> tuple[object, ...]:
    """One that did not fail to take it, an idle one, the smallest (large ones stay free for what needs them)."""
    has_failed = place.worker_id == step.sent_to
    return has_failed, not place.is_idle, place.room.allowance_bytes, place.load / place.slots, place.worker_id


def _first_that_fits(steps: list[Waiting], places: list[Place]) -> tuple[Waiting, Place] | None:
    for step in steps:
        fitting = [place for place in places if place.is_open and place.room.fits(step.need)]
        if step.waits_there:
            fitting = [place for place in fitting if place.is_idle and place.worker_id != step.sent_to]
        if fitting:
            return step, min(fitting, key=lambda place: _preference(step, place))
    return None

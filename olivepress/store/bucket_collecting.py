"""Removes from a bucket what nothing refers to any more, beside writers and readers on other machines.

The marking is that of `collecting.py`; the rest differs, because a bucket has no rename, dates an object only when it
is written, and deletes whatever has a key. So renewing and taking out are notes, and both sides look at the other's:

    W, who relies on content    1 writes renewals/…, which names it    2 looks into trash/, and waits while a note
                                there names it too    3 looks which of it is there, and writes the rest anew
    C, the collector            1 writes trash/…, which names what goes    2 looks into renewals/, and leaves what
                                was renewed (or written) since the cutoff    3 deletes the rest    4 deletes its note

Why no interleaving loses what W relies on, in a bucket that shows everybody at once what was written:

    W.1 before C.2             C sees the renewal and leaves the content
    C.2 before W.1             then also C.1 before W.2: W sees the note and waits until it is gone, that is until C.3
                               is over; or it is gone already. W.3 comes after C.3, so what is there then stays
    W dies before its manifest          its chunks are unreferenced, and go a grace period after they were renewed
    a reader                   what it needs is referenced or was renewed; nothing moves while it reads

C killed at any point leaves its note, and W gets a TransientError rather than wait for long. The next C goes on with
the note once `takeover_s` have passed since it was written: the first one might only be slow. It looks anew before each
deletion, does not delete on a look older than LOOK_HOLDS_S, and writes its note again before each look; a request to
delete is given up after `Bucket.longest_s`. So what remains is a collector that is stopped between its clock and its
request for longer than that, loses the lease on retention meanwhile, is overtaken by the next, and then sends it. No
bucket offers a deletion that would notice; what is lost so shows as a missing chunk to its readers, and a new run of
the step, whose key is known, puts it back.

The clock is the bucket's own, which tells whole seconds, always too early: a renewal may look older by a second than it
is, and so does the cutoff that it is compared with.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from olivepress.errors import BadArtifact, NotFound, TransientError
from olivepress.store.artifacts import in_order
from olivepress.store.bucket import (
    CHUNKS,
    MANIFESTS,
    RENEWALS,
    TRASH,
    BucketStore,
    chunk_key,
    manifest_key,
    sha256_of_key,
)
from olivepress.store.bucket_objects import NS_PER_S, Seen
from olivepress.store.collecting import (
    NONE,
    SETTLE_S,
    Amount,
    Digests,
    Emptied,
    StorePlan,
    TakenOut,
    View,
    amount,
    make_plan,
)
from olivepress.store.manifest import is_sha256
from olivepress.store.places import StoredFile

LOOK_HOLDS_S = 30.0
LOOKS = 3
AT_ONCE = 500
REQUESTS = 16


@dataclass(frozen=True)
class BucketCollector:
    """Collects one bucket; a run is `empty_trash`, `plan`, `take_out`, `empty_trash`, as that of `Collector`.

    Args:
        settle_s: the least time after which another collector's note is taken over.
        go_on: called before each request for many objects; what it raises ends the run, and the next run goes on.
        takeover_s: the same; unless given, long enough for that collector's last request to have ended.
    """

    store: BucketStore
    settle_s: float = SETTLE_S
    go_on: Callable[[], None] = field(default=lambda: None)
    takeover_s: float | None = None
    _own: list[str] = field(default_factory=list)

    def plan(self, references: Digests, grace_s: float, spare: Digests = frozenset) -> StorePlan:
        """What goes now; changes nothing. See `Collector.plan`."""
        shelves = _Shelves(self.store)
        return make_plan(View(self.store.name, shelves, self._chunks_of_all, self.go_on), references, grace_s, spare)

    def take_out(self, plan: StorePlan) -> TakenOut:
        """Announces what goes; forgets renewals that are too old to count."""
        cutoffs = [_cutoff_ns(note) for note in self.store.bucket.below(TRASH)]
        oldest_ns = min([plan.cutoff_ns, *cutoffs])
        too_old = [seen.key for seen in self.store.bucket.below(RENEWALS) if seen.written_ns < oldest_ns]
        self.store.bucket.delete(too_old)
        if not plan.manifests and not plan.chunks:
            return TakenOut()
        key = f"{TRASH}/{plan.cutoff_ns}-{secrets.token_hex(6)}.json"
        self.store.bucket.write(key, _names(plan.manifests + plan.chunks))
        self._own.append(key)
        return TakenOut(plan.artifacts, plan.chunk_files)

    def empty_trash(self) -> Emptied:
        """Deletes what was announced and not renewed since."""
        emptied = Emptied()
        for note in list(self.store.bucket.below(TRASH)):
            if note.key in self._own or self._is_settled(note):
                emptied += self._finish(note)
            else:
                emptied += Emptied(waiting=amount(self._files(self.store.announced(note))))
        return emptied

    def trash(self) -> Amount:
        """What is announced."""
        names = {name for note in self.store.bucket.below(TRASH) for name in self.store.announced(note)}
        return amount(self._files(names))

    def temporary(self) -> Amount:
        """Nothing: what is half written cannot be seen in a bucket."""
        return NONE

    def _is_settled(self, note: Seen) -> bool:
        least_s = self.takeover_s
        if least_s is None:
            least_s = max(self.settle_s, LOOK_HOLDS_S + 2 * self.store.bucket.longest_s)
        return _now_ns(self.store) >= note.written_ns + round(least_s * NS_PER_S)

    def _finish(self, note: Seen) -> Emptied:
        names = self.store.announced(note)
        files = sorted(self._files(names), key=lambda file: not file.is_manifest)  # manifests before chunks
        emptied = Emptied()
        for start in range(0, len(files), AT_ONCE):
            some = files[start : start + AT_ONCE]
            doomed = self._look(note, names, some)
            self.store.bucket.delete([file.path.as_posix() for file in doomed])
            emptied += Emptied(removed=amount(doomed), put_back=amount(set(some) - set(doomed)))
        self.store.bucket.delete([note.key])
        return emptied

    def _look(self, note: Seen, names: set[str], files: list[StoredFile]) -> list[StoredFile]:
        """Those of the announced files that nobody has renewed since the cutoff, as of now.

        Raises: TransientError (the bucket is too slow to act on what was seen).
        """
        for _ in range(LOOKS):
            self.go_on()
            self.store.bucket.write(note.key, json.dumps(sorted(names)).encode())
            looked_at = time.monotonic()
            saved = self._renewed_since(_cutoff_ns(note))
            current = list(self._files({file.sha256 for file in files}))
            young = {file.sha256 for file in current if file.renewed_ns >= _cutoff_ns(note)}
            saved |= young | self._chunks_of_saved(names & (saved | young))
            doomed = [file for file in current if file.sha256 not in saved and file in set(files)]
            if time.monotonic() - looked_at <= LOOK_HOLDS_S:
                return doomed
        raise TransientError(f"the store {self.store.name} answers too slowly to remove anything; the next run tries")

    def _renewed_since(self, cutoff_ns: int) -> set[str]:
        return _renewed(self.store, cutoff_ns)

    def _chunks_of_saved(self, names: set[str]) -> set[str]:
        chunks: set[str] = set()
        for name in names:
            try:
                chunks |= {chunk.sha256 for chunk in self.store.manifest(name).chunks()}
            except (BadArtifact, NotFound):  # a chunk's name, or a damaged manifest, which stays as it is
                continue
        return chunks

    def _chunks_of_all(self, files: Iterable[StoredFile]) -> set[str]:
        """The chunks of these manifests. Raises: BadArtifact, NotFound."""
        digests = [file.sha256 for file in files]
        chunks: set[str] = set()
        for manifest in in_order(self.store.manifest, digests, REQUESTS):
            self.go_on()
            chunks |= {chunk.sha256 for chunk in manifest.chunks()}
        return chunks

    def _files(self, names: set[str]) -> Iterator[StoredFile]:
        """The manifests and chunks of these names that are there now."""
        keys = [key for name in sorted(names) if is_sha256(name) for key in (manifest_key(name), chunk_key(name))]
        for seen in in_order(self.store.bucket.look, keys, REQUESTS):
            if seen is not None:
                yield _file(seen, seen.written_ns)


@dataclass(frozen=True)
class _Shelves:
    """The bucket's content, each as young as it was written or renewed last."""

    store: BucketStore

    def now_ns(self) -> int:
        return _now_ns(self.store)

    def manifests(self) -> Iterator[StoredFile]:
        return self._files(MANIFESTS)

    def chunks(self) -> Iterator[StoredFile]:
        return self._files(CHUNKS)

    def _files(self, folder: str) -> Iterator[StoredFile]:
        renewed = _renewals(self.store)
        for seen in self.store.bucket.below(folder):
            if is_sha256(sha256 := sha256_of_key(seen.key)):
                yield _file(seen, max(seen.written_ns, renewed.get(sha256, 0)))


def _file(seen: Seen, renewed_ns: int) -> StoredFile:
    return StoredFile(Path(seen.key), seen.size_bytes, renewed_ns)


def _renewals(store: BucketStore, since_ns: int = 0) -> dict[str, int]:
    """When each name was renewed last; those since this time only."""
    notes = sorted(
        (seen for seen in store.bucket.below(RENEWALS) if seen.written_ns >= since_ns), key=lambda seen: seen.written_ns
    )
    renewed: dict[str, int] = {}
    for note, names in zip(notes, in_order(store.announced, notes, REQUESTS), strict=True):
        renewed |= dict.fromkeys(names, note.written_ns)
    return renewed


def _renewed(store: BucketStore, since_ns: int) -> set[str]:
    return set(_renewals(store, since_ns))


def _now_ns(store: BucketStore) -> int:
    """Now, by the clock that also dates the objects."""
    key = f"clock/{secrets.token_hex(8)}"
    store.bucket.write(key, b"")
    seen = store.bucket.look(key)
    store.bucket.delete([key])
    if seen is None:
        raise TransientError(
            f"the store {store.name} does not show at once what was written; it needs a bucket that does"
        )
    return seen.written_ns


def _cutoff_ns(note: Seen) -> int:
    """The cutoff that an announcement was made with."""
    digits = Path(note.key).name.partition("-")[0]
    return int(digits) if digits.isdecimal() else 0


def _names(files: Iterable[StoredFile]) -> bytes:
    return json.dumps(sorted(file.sha256 for file in files)).encode()

"""Removes from a directory store what nothing refers to any more, beside writers and readers on other machines.

Mark: the artifacts that somebody refers to stay, and the chunks of all artifacts that stay. Of the rest, what nobody
renewed (wrote, put again, or was told that the store has it) since the *cutoff* goes: the time before the marking, less
a grace period. No lock is held, for a writer may be a machine that cannot be asked. Instead what goes takes two steps:

    take out    the file is renamed into trash/cutoff-random/, manifests before chunks
    remove      after `settle_s` its time is looked at again: renewed since the cutoff, it is put back; else unlinked

Why no interleaving loses what somebody relies on. A writer W (or `has`, which answers that an artifact may be relied
on) renews a file by its path, and the collector C renames that file:

    W renews, C looks          C sees a young file and leaves it
    C looks, W renews, C renames        the renewal went with the file into the trash; C puts it back
    C renames, W renews        the path is not there: W writes the file anew, or `has` says no. C's copy is another
                               file; removing it, or putting it back over W's, changes no content
    C renames, W renews the renamed file        possible where W's machine still remembers the old name (a network file
                               system's cache of names, at most a minute by default) or stopped inside the call;
                               so C waits for `settle_s`, which is longer, before it looks: as in the second line
    W dies before its manifest          its chunks are unreferenced, and go a grace period after it renewed them
    W is slow                  it renews all chunks again right before it writes the manifest; from there to the commit
                               of the reference the grace period must last, not for the whole of a put
    a reader                   reads a file in the trash as if it were in its place, so a file that will be put back
                               is never missed

Putting back renews first and renames then: it may go over a copy that somebody wrote meanwhile, and must not make that
one old. Of an artifact that is put back all chunks are, and before its manifest: one that can be seen stays whole.

Killed at any point, C leaves files in their place or in the trash, where the next one goes on. Two collectors at once
only race for the same renames and unlinks; the loser's call finds no file, which is no error. Nothing here depends on
references that appear later: whoever makes one has renewed the artifact before.
"""

import contextlib
import logging
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from olivepress.errors import BadArtifact, NotFound
from olivepress.store.directory import DirectoryStore
from olivepress.store.durable import renew
from olivepress.store.places import StoredFile, stored_files

log = logging.getLogger(__name__)

NS_PER_S = 1_000_000_000
# Twice as long as the caches of network file systems keep a name by default.
SETTLE_S = 120.0
# A living writer needs seconds for a file.
TEMPORARY_S = 3600.0


@dataclass(frozen=True)
class Amount:
    """How many, and how many bytes together."""

    count: int = 0
    size_bytes: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.count + other.count, self.size_bytes + other.size_bytes)


NONE = Amount()
Digests = Callable[[], AbstractSet[str]]


@dataclass(frozen=True)
class StorePlan:
    """What of a store goes."""

    cutoff_ns: int
    manifests: list[StoredFile]
    chunks: list[StoredFile]
    problem: str | None = None
    """Why something stays although it might be unreferenced."""

    @property
    def artifacts(self) -> Amount:
        """The manifests that go."""
        return amount(self.manifests)

    @property
    def chunk_files(self) -> Amount:
        """The chunks that go: the space that comes free."""
        return amount(self.chunks)


@dataclass(frozen=True)
class TakenOut:
    """What was renamed into the trash."""

    artifacts: Amount = NONE
    chunks: Amount = NONE


@dataclass(frozen=True)
class Emptied:
    """What became of the trash: removed for good, put back because somebody relies on it, still waiting."""

    removed: Amount = NONE
    put_back: Amount = NONE
    waiting: Amount = NONE

    def __add__(self, other: "Emptied") -> "Emptied":
        return Emptied(self.removed + other.removed, self.put_back + other.put_back, self.waiting + other.waiting)


@dataclass(frozen=True)
class Collector:
    """Collects one store; a run is `empty_trash`, `plan`, `take_out`, `empty_trash`.

    Args:
        settle_s: how long a file stays in the trash before it is removed. Less than SETTLE_S is safe only where all
            writers use the store through one kernel.
        go_on: called before each file; what it raises ends the run, and the next run goes on.
    """

    store: DirectoryStore
    settle_s: float = SETTLE_S
    go_on: Callable[[], None] = field(default=lambda: None)

    def plan(self, references: Digests, grace_s: float, spare: Digests = frozenset) -> StorePlan:
        """What goes now; changes nothing.

        Args:
            references: asks for the digests of all artifacts that somebody refers to, in one consistent look. It is
                called after the cutoff is taken: a reference that it does not see yet was renewed after that.
            grace_s: how long ago an unreferenced file must have been renewed last.
            spare: asks which of the references cost only time when they are lost. While the manifest of another one
                is missing, no chunk goes: nobody can tell which are its own.
        """
        view = View(self.store.name, self.store.places, self._chunks_of_all, self.go_on, self._in_trash)
        return make_plan(view, references, grace_s, spare)

    def take_out(self, plan: StorePlan) -> TakenOut:
        """Moves what goes into the trash, unless somebody renewed it meanwhile."""
        if not plan.manifests and not plan.chunks:
            return TakenOut()
        batch = self.store.places.trash / f"{plan.cutoff_ns}-{secrets.token_hex(6)}"
        batch.mkdir()
        artifacts = self._move(plan.manifests, batch, plan.cutoff_ns)
        return TakenOut(artifacts, self._move(plan.chunks, batch, plan.cutoff_ns))

    def empty_trash(self) -> Emptied:
        """Removes what has settled in the trash; puts back what was renewed since its cutoff."""
        emptied = Emptied()
        for batch in self._batches():
            if self._is_settled(batch):
                emptied += self._finish(batch, _cutoff_ns(batch))
            else:
                emptied += Emptied(waiting=amount(stored_files(batch)))
        return emptied

    def trash(self) -> Amount:
        """What lies in the trash."""
        return amount(self._in_trash())

    def temporary(self) -> Amount:
        """What dead writers left in tmp/."""
        old_ns = self.store.places.now_ns() - round(TEMPORARY_S * NS_PER_S)
        found = Amount()
        for path in self.store.places.tmp.iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                if status.st_mtime_ns <= old_ns and not stat.S_ISDIR(status.st_mode):
                    found += Amount(1, status.st_size)
        return found

    def _chunks_of_all(self, files: Iterable[StoredFile]) -> set[str]:
        """The chunks of those files that are manifests. Raises: BadArtifact, NotFound."""
        chunks: set[str] = set()
        for file in files:
            self.go_on()
            if file.is_manifest:
                chunks |= {chunk.sha256 for chunk in self.store.manifest(file.sha256).chunks()}
        return chunks

    def _move(self, files: list[StoredFile], batch: Path, cutoff_ns: int) -> Amount:
        moved = Amount()
        for file in files:
            self.go_on()
            with contextlib.suppress(FileNotFoundError):  # another collector was faster
                status = file.path.lstat()
                # What is no file, a check finds.
                if status.st_mtime_ns < cutoff_ns and stat.S_ISREG(status.st_mode):
                    file.path.rename(batch / file.path.name)
                    moved += Amount(1, file.size_bytes)
        return moved

    def _batches(self) -> Iterator[Path]:
        return (path for path in sorted(self.store.places.trash.iterdir()) if _cutoff_ns(path) >= 0)

    def _in_trash(self) -> Iterator[StoredFile]:
        for batch in self._batches():
            yield from stored_files(batch)

    def _is_settled(self, batch: Path) -> bool:
        try:
            # Dated by the last file that was renamed into it.
            settled_ns = batch.stat().st_mtime_ns + round(self.settle_s * NS_PER_S)
        except FileNotFoundError:
            return False
        return self.store.places.now_ns() >= settled_ns

    def _finish(self, batch: Path, cutoff_ns: int) -> Emptied:
        files = [file for file in stored_files(batch) if file.path.is_file() and not file.path.is_symlink()]
        saved = {file for file in files if file.renewed_ns >= cutoff_ns}
        shared: set[str] = set()
        for file in saved:
            with contextlib.suppress(BadArtifact, NotFound):  # a damaged manifest goes back as it came
                shared |= self._chunks_of_all([file])
        saved |= {file for file in files if file.sha256 in shared and not file.is_manifest}
        emptied = Emptied()
        # Unlinked: manifests before chunks. Put back: chunks before manifests.
        for file in sorted(set(files) - saved, key=lambda file: not file.is_manifest):
            self.go_on()
            file.path.unlink(missing_ok=True)
            emptied += Emptied(removed=Amount(1, file.size_bytes))
        for file in sorted(saved, key=lambda file: file.is_manifest):
            self.go_on()
            self._put_back(file)
            emptied += Emptied(put_back=Amount(1, file.size_bytes))
        with contextlib.suppress(OSError):  # a file of another name, or another collector's work
            batch.rmdir()
        return emptied

    def _put_back(self, file: StoredFile) -> None:
        if renew(file.path, self.store.places.tmp) is None:
            return
        home = self.store.places.home(file)
        home.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            file.path.rename(home)
            log.info("put back into the store, somebody relies on it: %s", home)


class StoreCollector(Protocol):
    """Collects a store; a run is `empty_trash`, `plan`, `take_out`, `empty_trash`."""

    def plan(self, references: Digests, grace_s: float, spare: Digests = frozenset) -> StorePlan:
        """What goes now; changes nothing. See `Collector.plan`."""

    def take_out(self, plan: StorePlan) -> TakenOut:
        """Takes out of use what goes, unless somebody renewed it meanwhile."""

    def empty_trash(self) -> Emptied:
        """Removes for good what was taken out and has settled, unless it was renewed since its cutoff."""

    def trash(self) -> Amount:
        """What was taken out and is not removed yet."""

    def temporary(self) -> Amount:
        """What dead writers left."""


class Shelves(Protocol):
    """What a store holds, and the clock that dates it."""

    def now_ns(self) -> int:
        """Now, by the clock that also dates the files."""

    def manifests(self) -> Iterator[StoredFile]:
        """The manifests that can be seen."""

    def chunks(self) -> Iterator[StoredFile]:
        """The chunks that can be seen."""


@dataclass(frozen=True)
class View:
    """A store as the marking sees it."""

    name: str
    shelves: Shelves
    chunks_of_all: Callable[[Iterable[StoredFile]], set[str]]
    go_on: Callable[[], None]
    taken_out: Callable[[], Iterable[StoredFile]] = tuple
    """What may yet be put back."""


def make_plan(view: View, references: Digests, grace_s: float, spare: Digests) -> StorePlan:
    """The marking: see `Collector.plan`."""
    cutoff_ns = view.shelves.now_ns() - round(grace_s * NS_PER_S)
    referenced = references()
    seen = list(view.shelves.manifests())
    doomed = [file for file in seen if file.sha256 not in referenced and file.renewed_ns < cutoff_ns]
    if doomed and not any(file.sha256 in referenced for file in seen):
        # A database that is new, restored halfway or another stack's must not cost everything.
        problem = (
            f"the database refers to none of the {len(seen)} artifacts in {view.name}, so nothing is removed "
            "there; see that it is this store's database"
        )
        return StorePlan(cutoff_ns, [], [], problem)
    held = {*seen, *view.taken_out()} - set(doomed)
    unseen = referenced - {file.sha256 for file in held}
    # What is needed and was not listed is asked for by name.
    asked_for = {StoredFile(Path(f"{digest}.json"), 0, 0) for digest in (unseen - spare() if unseen else ())}
    try:
        kept = view.chunks_of_all(held | asked_for)
    except (BadArtifact, NotFound) as error:
        # Its chunks cannot be told from garbage, and it may yet be restored from a backup.
        return StorePlan(cutoff_ns, doomed, [], f"no chunk is removed while a manifest cannot be read: {error}")
    chunks = []
    for chunk in view.shelves.chunks():
        view.go_on()
        if chunk.renewed_ns < cutoff_ns and chunk.sha256 not in kept:
            chunks.append(chunk)
    return StorePlan(cutoff_ns, doomed, chunks)


def amount(files: Iterable[StoredFile]) -> Amount:
    """How many files these are, and how large."""
    return sum((Amount(1, file.size_bytes) for file in files), Amount())


def _cutoff_ns(batch: Path) -> int:
    """The cutoff that a batch in the trash was taken out with; -1 for what is no batch."""
    digits = batch.name.partition("-")[0]
    return int(digits) if digits.isdecimal() and batch.is_dir() else -1

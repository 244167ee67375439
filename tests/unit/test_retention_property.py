"""However puts, publications, readers, deletions, time and collectors interleave: what is needed stays, garbage goes.

Collections run in their phases, several at a time, and die between any two of their files.

Of a directory each protection was taken out once, by hand, and a test here failed for it: the grace period, chunks that
artifacts share, the second look before a file is taken out and the one in the trash, the chunks of what is put back and
of what may yet be, every order (manifests out first and gone first, back last), that putting back renews, that readers
look into the trash, that `has` and puts renew. Two are not seen here. The look at a file's age when a collection is
planned is repeated before the file is moved: only both together are caught. And nothing here waits: that the trash
settles first is tested in test_store_collecting.py.

A bucket has few examples here, for its requests take time: of three protections of its own that were taken out none was
noticed here, and two in test_bucket_collecting.py (renewals that come before the deletion; writers that wait).
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from olivepress.errors import BadArtifact, TransientError
from olivepress.store import Chunk, Manifest
from olivepress.store.bucket import BucketStore
from olivepress.store.collecting import StorePlan
from olivepress.store.manifest import FileEntry
from tests.s3_server import S3Server, age, s3_server
from tests.unit.store_cases import Opened, in_bucket, in_directory

GRACE_S = 3600.0
# Where nothing waits for a disk: none of it has to survive a power cut.
MEMORY = Path("/dev/shm")
BLOBS = [f"blob {number} ".encode() * (number + 1) for number in range(4)]
subsets = st.sets(st.integers(0, len(BLOBS) - 1), min_size=1, max_size=2)
anything = st.integers(0, 10**6)
Work = tuple[str, set[int], int]
names = st.sampled_from(["put", "put slowly", "finish", "publish", "start", "read", "collect"])
works = st.lists(st.tuples(names, subsets, anything), max_size=3)


@dataclass
class Version:
    """A published artifact; one that is deleted is needed until the end of its grace period."""

    digest: str
    deleted_at_s: float | None = None


@dataclass
class Reader:
    """Somebody who reads a file of an artifact that is needed, chunk by chunk."""

    digest: str
    blocks: Iterator[bytes]
    expected: bytes


@dataclass
class Collection:
    """A run of a collector that is somewhere in the middle."""

    collector: Any
    plan: StorePlan | None = None
    steps_left: list[int] = field(default_factory=list)
    """It dies when these are used up; empty: it does not."""


class Shelf(RuleBasedStateMachine):
    """A store, who needs what of it, and collectors. A subclass says which kind of store."""

    server: ClassVar[S3Server | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.opened: Opened = in_bucket(self.server) if self.server else in_directory(self.root / "store")
        self.store = self.opened.store
        self.now_s = 0.0
        self.known: list[Manifest] = []
        self.relied: dict[str, float] = {}
        """When somebody last put an artifact, or was told that it is there."""
        self.versions: list[Version] = []
        self.aliases: dict[str, Version] = {}
        self.running: list[str] = []
        self.writers: list[tuple[Manifest, float]] = []
        """What they are going to put, and when they put its chunks."""
        self.readers: list[Reader] = []
        self.collections: list[Collection] = []
        first = self.put({0})
        assert first is not None
        self.publish(first)

    def teardown(self) -> None:
        try:
            self.everything_else_goes_in_the_end()
        finally:
            shutil.rmtree(self.root)

    # What is there, and who needs it

    def references(self) -> set[str]:
        """What a database would say."""
        kept = {each.digest for each in self.versions if each.deleted_at_s is None or self.is_young(each.deleted_at_s)}
        return kept | set(self.running)

    def is_young(self, since_s: float) -> bool:
        return self.now_s - since_s < GRACE_S

    def put(self, blobs: set[int]) -> Manifest | None:
        """None: a bucket's collector has announced what is needed, and the writer is told to try later."""
        source = self.root / ("source-" + "-".join(map(str, sorted(blobs))))
        source.mkdir(exist_ok=True)
        for number in blobs:
            (source / f"file-{number}").write_bytes(BLOBS[number])
        try:
            manifest = self.store.put_directory(source)
        except TransientError:
            return None
        self.rely_on(manifest)
        return manifest

    def rely_on(self, manifest: Manifest) -> None:
        self.relied[manifest.digest] = self.now_s
        if manifest not in self.known:
            self.known.append(manifest)

    def publish(self, manifest: Manifest) -> None:
        self.versions.append(Version(manifest.digest))

    def found(self, pick: int) -> Manifest | None:
        """An artifact of which the store says that it is there."""
        manifest = self.known[pick % len(self.known)]
        try:
            is_there = self.store.has(manifest.digest)
        except TransientError:
            return None
        if not is_there:
            assert manifest.digest not in self.references()
            return None
        self.rely_on(manifest)
        return manifest

    # Writers

    @rule(blobs=subsets)
    def somebody_puts(self, blobs: set[int]) -> None:
        self.put(blobs)

    @rule(blobs=subsets)
    def a_slow_writer_puts_chunks(self, blobs: set[int]) -> None:
        entries = []
        for number in sorted(blobs):
            chunk: Chunk = self.store.put_chunk(BLOBS[number])
            entries.append(FileEntry(f"slow-{number}", chunk.size_bytes, chunk.sha256, (chunk,)))
        self.writers.append((Manifest.of(entries), self.now_s))

    @precondition(lambda self: self.writers)
    @rule(pick=anything)
    def a_slow_writer_finishes(self, pick: int) -> None:
        manifest, since_s = self.writers.pop(pick % len(self.writers))
        try:
            self.store.put_manifest(manifest)
        except BadArtifact:  # it took longer than the grace period, and is told so; a bucket tells it sooner
            assert self.server is not None or not self.is_young(since_s)
            return
        except TransientError:
            return
        self.rely_on(manifest)

    # The registry

    @rule(pick=anything)
    def a_version_is_published(self, pick: int) -> None:
        if manifest := self.found(pick):
            self.publish(manifest)

    @rule(pick=anything, alias=st.sampled_from(["latest", "production"]))
    def an_alias_moves(self, pick: int, alias: str) -> None:
        kept = [each for each in self.versions if each.deleted_at_s is None]
        self.aliases[alias] = kept[pick % len(kept)]

    @rule(pick=anything)
    def a_version_is_deleted(self, pick: int) -> None:
        pointed = list(self.aliases.values())
        free = [each for each in self.versions[1:] if each.deleted_at_s is None and each not in pointed]
        if free:
            free[pick % len(free)].deleted_at_s = self.now_s

    @rule(pick=anything)
    def a_deletion_is_taken_back(self, pick: int) -> None:
        gone = [each for each in self.versions if each.deleted_at_s is not None and self.is_young(each.deleted_at_s)]
        if gone:
            gone[pick % len(gone)].deleted_at_s = None

    @rule(pick=anything)
    def a_step_starts(self, pick: int) -> None:
        if manifest := self.found(pick):
            self.running.append(manifest.digest)

    @precondition(lambda self: self.running)
    @rule(pick=anything)
    def a_step_ends(self, pick: int) -> None:
        self.running.pop(pick % len(self.running))

    # Readers

    @rule(pick=anything)
    def a_reader_begins(self, pick: int) -> None:
        needed = [manifest for manifest in self.known if manifest.digest in self.references()]
        manifest = needed[pick % len(needed)]
        file = manifest.files[-1]
        blob = BLOBS[int(file.path.rpartition("-")[2])]
        self.readers.append(Reader(manifest.digest, self.store.open_file(manifest.digest, file.path), blob))

    @precondition(lambda self: self.readers)
    @rule(pick=anything)
    def a_reader_goes_on(self, pick: int) -> None:
        reader = self.readers.pop(pick % len(self.readers))
        try:
            assert b"".join(reader.blocks) == reader.expected
        except BadArtifact:
            assert reader.digest not in self.references()

    # Time and collectors

    @rule(share=st.sampled_from([0.6, 1.1]))
    def time_passes(self, share: float) -> None:
        seconds = share * GRACE_S
        self.now_s += seconds
        if isinstance(self.store, BucketStore):
            self._let_bucket_age(self.store, seconds)
        else:
            self._let_directory_age(seconds)
        for each in self.collections:
            if each.plan is not None:
                each.plan = replace(each.plan, cutoff_ns=each.plan.cutoff_ns - round(seconds * 1e9))

    @rule(dies_after=st.one_of(st.none(), st.integers(0, 12)))
    def a_collection_begins(self, dies_after: int | None) -> None:
        run = Collection(self.opened.collector(), steps_left=[] if dies_after is None else [dies_after])
        run.collector = replace(run.collector, go_on=lambda: self._take_step(run))
        if self._lives(run, run.collector.empty_trash) and self._lives(run, lambda: self._make_plan(run)):
            self.collections.append(run)

    @precondition(lambda self: self.collections)
    @rule(pick=anything)
    def a_collection_takes_out(self, pick: int) -> None:
        run = self.collections[pick % len(self.collections)]
        plan, run.plan = run.plan, None
        if plan is not None and not self._lives(run, lambda: run.collector.take_out(plan)):
            self.collections.remove(run)

    @precondition(lambda self: self.collections)
    @rule(pick=anything)
    def a_collection_ends(self, pick: int) -> None:
        run = self.collections.pop(pick % len(self.collections))
        self._lives(run, run.collector.empty_trash)

    @rule(ages=st.booleans(), work=st.tuples(works, works), dies_after=st.none() | st.integers(0, 4))
    def a_collection_meets_others(
        self, ages: bool, work: tuple[list[Work], list[Work]], dies_after: int | None
    ) -> None:
        """What somebody does after the marking, and between taking out and removing; the collector may die there."""
        if ages:
            self.time_passes(1.1)
        run = Collection(self.opened.collector())
        run.collector.empty_trash()
        self.what_can_be_seen_is_whole()
        self._make_plan(run)
        run.steps_left = [] if dies_after is None else [dies_after]
        run.collector = replace(run.collector, go_on=lambda: self._take_step(run))
        for name, blobs, pick in work[0]:
            self._do(name, blobs, pick)
        plan, run.plan = run.plan, None
        assert plan is not None
        is_alive = self._lives(run, lambda: run.collector.take_out(plan))
        for name, blobs, pick in work[1]:
            self._do(name, blobs, pick)
        if is_alive:
            self._lives(run, run.collector.empty_trash)

    def _do(self, name: str, blobs: set[int], pick: int) -> None:
        if name == "put":
            self.put(blobs)
        elif name == "put slowly":
            self.a_slow_writer_puts_chunks(blobs)
            self.a_slow_writer_finishes(-1)
        elif name == "finish" and self.writers:
            self.a_slow_writer_finishes(pick)
        elif name == "publish":
            self.a_version_is_published(pick)
        elif name == "start":
            self.a_step_starts(pick)
        elif name == "read":
            self.a_reader_begins(pick)
        elif name == "collect":
            self.a_collection_begins(None)

    def _make_plan(self, run: Collection) -> None:
        run.plan = run.collector.plan(self.references, GRACE_S)

    def _take_step(self, run: Collection) -> None:
        if run.steps_left:
            run.steps_left[0] -= 1
            if run.steps_left[0] < 0:
                raise TransientError("killed")

    def _lives(self, run: Collection, work: Any) -> bool:
        try:
            work()
        except TransientError:
            return False
        return True

    def _let_directory_age(self, seconds: float) -> None:
        # A collector's cutoff is an instant, too.
        self.opened.make_older(seconds)
        for batch in sorted((self.root / "store" / "trash").iterdir()):
            cutoff, _, rest = batch.name.partition("-")
            batch.rename(batch.with_name(f"{int(cutoff) - round(seconds * 1e9)}-{rest}"))

    def _let_bucket_age(self, store: BucketStore, seconds: float) -> None:
        renamed: dict[str, str] = {}
        for note in list(store.bucket.below("trash")):
            cutoff, _, rest = note.key.removeprefix("trash/").partition("-")
            renamed[note.key] = f"trash/{int(cutoff) - round(seconds * 1e9)}-{rest}"
            store.bucket.write(renamed[note.key], store.bucket.read(note.key))
            store.bucket.delete([note.key])
        age(store.bucket, seconds)
        for run in self.collections:
            run.collector._own[:] = [renamed.get(key, key) for key in run.collector._own]

    # What must hold

    @invariant()
    def what_is_needed_can_be_read(self) -> None:
        relied = {digest for digest, at_s in self.relied.items() if self.is_young(at_s)}
        for manifest in self.known:
            if manifest.digest in self.references() | relied:
                assert self.store.manifest(manifest.digest) == manifest
                for file in manifest.files:
                    assert b"".join(self.store.read_range(file, 0, file.size_bytes)) == BLOBS[int(file.path[-1])]

    @invariant()
    def what_can_be_seen_is_whole(self) -> None:
        for digest in list(self.store.manifest_digests()):
            for file in self.store.manifest(digest).files:
                assert sum(map(len, self.store.read_range(file, 0, file.size_bytes))) == file.size_bytes

    def everything_else_goes_in_the_end(self) -> None:
        """Garbage goes: also what a collector left that died, and a writer that never came to its end."""
        self.writers.clear()
        self.readers.clear()
        self.collections.clear()
        for _ in range(3):
            self.time_passes(1.5)
            self.a_collection_begins(None)
            run = self.collections.pop()
            assert run.plan is not None and run.plan.problem is None
            run.collector.take_out(run.plan)
            run.collector.empty_trash()
        self.what_is_needed_can_be_read()
        kept = [self.store.manifest(digest) for digest in self.references()]
        assert set(self.store.manifest_digests()) == self.references()
        assert self.opened.chunks() == {chunk.sha256 for manifest in kept for chunk in manifest.chunks()}
        assert self.opened.collector().trash().count == 0


class NetworkShelf(Shelf):
    """A directory that machines share whose file systems remember names for a while."""

    @rule(pick=anything, dies=st.booleans())
    def a_machine_renews_what_was_renamed(self, pick: int, dies: bool) -> None:
        """It still knows the old names, as a network file system's cache does; it may die behind the manifest."""
        trash = self.root / "store" / "trash"
        taken = sorted(trash.glob("*/*.json"))
        if not taken:
            return
        path = taken[pick % len(taken)]
        manifest = self.store.manifest(path.stem)
        os.utime(path)
        if dies:
            return
        homes = list((self.root / "store").glob("chunks/*/*"))
        for chunk in manifest.chunks():
            places = [each for each in (*homes, *trash.glob(f"*/{chunk.sha256}")) if each.name == chunk.sha256]
            if not places:
                return
            os.utime(places[0])
        self.rely_on(manifest)

    @rule(pick=anything, is_late=st.booleans(), writes=st.booleans(), dies_after=st.none() | st.integers(0, 4))
    def what_was_taken_out_is_renewed(self, pick: int, is_late: bool, writes: bool, dies_after: int | None) -> None:
        """The collector that looks at it then may die; a writer puts the same chunks; another collector comes later.

        `is_late`: the renewal comes when that collector is dead.
        """
        blobs = {pick % len(BLOBS), pick // 7 % len(BLOBS)}
        self.put(blobs)
        self.time_passes(1.1)
        run = self._taken_out()
        run.steps_left = [] if dies_after is None else [dies_after]
        if is_late:
            self._lives(run, run.collector.empty_trash)
        self.a_machine_renews_what_was_renamed(pick, dies=bool(pick % 2))
        if writes:
            self.time_passes(0.6)
            self.a_slow_writer_puts_chunks(blobs)
        self._lives(run, run.collector.empty_trash)
        self.what_can_be_seen_is_whole()
        self.time_passes(0.6)
        self._taken_out().collector.empty_trash()
        if writes:
            self.a_slow_writer_finishes(-1)

    @rule(pick=anything, dies_after=st.integers(1, 6))
    def a_collector_dies_while_another_looks(self, pick: int, dies_after: int) -> None:
        """What the one has taken out of an artifact is then renewed, and the rest is still in its place."""
        self.put({pick % len(BLOBS), pick // 7 % len(BLOBS)})
        self.time_passes(1.1)
        first, second = (Collection(self.opened.collector()) for _ in range(2))
        first.collector = replace(first.collector, go_on=lambda: self._take_step(first))
        self._make_plan(first)
        second.collector.empty_trash()
        first.steps_left = [dies_after]
        self._lives(first, lambda: first.collector.take_out(first.plan))
        self._make_plan(second)
        self.a_machine_renews_what_was_renamed(pick, dies=bool(pick % 2))
        second.collector.take_out(second.plan)
        second.collector.empty_trash()

    def _taken_out(self) -> Collection:
        """A run of a collector that has come as far as taking out."""
        run = Collection(self.opened.collector())
        run.collector = replace(run.collector, go_on=lambda: self._take_step(run))
        run.collector.empty_trash()
        self._make_plan(run)
        run.collector.take_out(run.plan)
        return run


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


def run_machine(machine: type[Shelf], examples: int, steps: int) -> None:
    # The same examples every time: an unlucky one fails no unrelated change.
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=chosen)


def test_a_directory_keeps_what_is_needed_and_loses_the_rest() -> None:
    run_machine(Shelf, examples=25, steps=25)


def test_a_directory_of_machines_that_remember_old_names_keeps_what_they_rely_on() -> None:
    run_machine(NetworkShelf, examples=100, steps=15)


def test_a_bucket_keeps_what_is_needed_and_loses_the_rest(server: S3Server) -> None:
    class BucketShelf(Shelf):
        pass

    BucketShelf.server = server
    run_machine(BucketShelf, examples=4, steps=14)

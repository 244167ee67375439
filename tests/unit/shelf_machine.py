"""A store in which puts, publications, readers, deletions, time and collectors interleave as hypothesis chooses."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from olivepress.errors import BadArtifact, TransientError
from olivepress.store import Chunk, Manifest
from olivepress.store.bucket import BucketStore
from olivepress.store.collecting import StorePlan
from olivepress.store.manifest import FileEntry
from tests.s3_server import S3Server, age
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

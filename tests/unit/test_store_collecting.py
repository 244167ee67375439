"""Nothing that somebody relies on leaves the store, however writers, readers and a collector interleave."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from olivepress.errors import BadArtifact
from olivepress.store import DirectoryStore, Manifest
from olivepress.store.collecting import Amount, Collector, Emptied
from olivepress.store.durable import renew

GRACE_S = 3600.0
LONG_AGO_S = 3 * GRACE_S


class Shop:
    """A store, two artifacts that share a chunk, and a collector that waits for nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = DirectoryStore(root / "store")
        self.kept = self.put("kept", {"a": b"shared", "b": b"only in kept"})
        self.doomed = self.put("doomed", {"a": b"shared", "b": b"only in doomed", "c": b"also only in doomed"})
        self.references = {self.kept.digest}
        age(self.store)

    def source(self, name: str, files: dict[str, bytes]) -> Path:
        source = self.root / name
        source.mkdir(exist_ok=True)
        for path, content in files.items():
            (source / path).write_bytes(content)
        return source

    def put(self, name: str, files: dict[str, bytes]) -> Manifest:
        return self.store.put_directory(self.source(name, files))

    def put_doomed_again(self) -> None:
        assert self.store.put_directory(self.root / "doomed") == self.doomed

    def collector(self, settle_s: float = 0.0, go_on: Callable[[], None] = lambda: None) -> Collector:
        return Collector(self.store, settle_s, go_on)

    def throw_away(self, settle_s: float = 0.0) -> Collector:
        """Take out the doomed artifact; gives the collector that did it."""
        collector = self.collector(settle_s)
        collector.take_out(collector.plan(lambda: self.references, GRACE_S))
        assert not self.store.places.manifest(self.doomed.digest).exists()
        return collector

    def collect(self) -> Emptied:
        """One whole run."""
        collector = self.collector()
        first = collector.empty_trash()
        collector.take_out(collector.plan(lambda: self.references, GRACE_S))
        return first + collector.empty_trash()

    def chunks_of(self, manifest: Manifest) -> set[Path]:
        return {self.store.places.chunk(chunk.sha256) for chunk in manifest.chunks()}

    def only_in_doomed(self) -> set[Path]:
        return self.chunks_of(self.doomed) - self.chunks_of(self.kept)

    def assert_whole(self, *manifests: Manifest) -> None:
        """These artifacts are there, the trash is empty, and what can be seen has all its chunks."""
        for manifest in manifests:
            target = self.root / f"target-{os.urandom(4).hex()}"
            self.store.materialise(manifest.digest, target)
            assert {path.name for path in target.iterdir()} == {file.path for file in manifest.files}
        assert trash_of(self.store) == []
        self.assert_what_can_be_seen_is_whole()

    def assert_what_can_be_seen_is_whole(self) -> None:
        for seen in self.store.places.manifests():
            assert all(path.exists() for path in self.chunks_of(self.store.manifest(seen.sha256)))


def age(store: DirectoryStore, seconds: float = LONG_AGO_S) -> None:
    """Make everything in the store as old as if it had been there for a while."""
    for path in (*store.root.glob("chunks/*/*"), *store.root.glob("manifests/*/*"), *store.root.glob("trash/*/*")):
        make_old(path, seconds)


def make_old(path: Path, seconds: float = LONG_AGO_S) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def trash_of(store: DirectoryStore) -> list[Path]:
    return sorted(store.root.glob("trash/*/*"))


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


class TestWhatGoes:
    def test_an_old_artifact_without_reference_goes_with_the_chunks_that_only_it_has(self, shop: Shop) -> None:
        alone = shop.only_in_doomed()

        emptied = shop.collect()

        shop.assert_whole(shop.kept)
        assert not shop.store.has(shop.doomed.digest)
        assert not any(path.exists() for path in alone)
        assert emptied.removed.count == 1 + len(alone) == 3
        assert list(shop.store.places.trash.iterdir()) == []

    def test_a_plan_names_what_goes_and_changes_nothing(self, shop: Shop) -> None:
        before = {path: path.stat().st_mtime_ns for path in shop.store.root.rglob("*") if path.is_file()}

        plan = shop.collector().plan(lambda: shop.references, GRACE_S)

        assert [file.sha256 for file in plan.manifests] == [shop.doomed.digest]
        assert {file.path for file in plan.chunks} == shop.only_in_doomed()
        assert plan.chunk_files == Amount(2, len(b"only in doomed") + len(b"also only in doomed"))
        assert {path: path.stat().st_mtime_ns for path in before} == before

    def test_what_was_put_within_the_grace_period_stays(self, shop: Shop) -> None:
        young = shop.put("young", {"a": b"young"})

        shop.collect()

        shop.assert_whole(shop.kept, young)

    def test_chunks_of_a_writer_that_died_before_its_manifest_go_a_grace_period_later(self, shop: Shop) -> None:
        orphan = shop.store.places.chunk("0" * 64)
        orphan.parent.mkdir(exist_ok=True)
        orphan.write_bytes(b"content")

        assert orphan not in {file.path for file in shop.collector().plan(lambda: shop.references, GRACE_S).chunks}
        shop.collect()
        assert orphan.exists()
        make_old(orphan)
        shop.collect()

        assert not orphan.exists()
        shop.assert_whole(shop.kept)

    def test_files_that_are_not_the_stores_stay(self, shop: Shop) -> None:
        foreign = shop.store.places.chunk("0" * 64).with_name("README")
        foreign.parent.mkdir(exist_ok=True)
        foreign.write_text("mine")
        make_old(foreign)

        shop.collect()

        assert foreign.exists()

    def test_nothing_goes_when_the_database_knows_no_artifact_of_the_store(self, shop: Shop) -> None:
        shop.references = {"f" * 64}

        plan = shop.collector().plan(lambda: shop.references, GRACE_S)

        assert (plan.manifests, plan.chunks) == ([], [])
        assert plan.problem is not None
        assert "none of the 2 artifacts" in plan.problem

    def test_no_chunk_goes_while_the_manifest_of_a_referenced_artifact_is_damaged(self, shop: Shop) -> None:
        path = shop.store.places.manifest(shop.kept.digest)
        content = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(b"{" + content)

        plan = shop.collector().plan(lambda: shop.references, GRACE_S)
        shop.collect()
        path.write_bytes(content)

        assert plan.problem is not None
        assert shop.kept.digest in plan.problem
        shop.assert_whole(shop.kept)

    def test_a_damaged_manifest_without_reference_goes(self, shop: Shop) -> None:
        path = shop.store.places.manifest(shop.doomed.digest)
        path.chmod(0o644)
        path.write_bytes(b"damaged")
        make_old(path)

        shop.collect()

        assert not path.exists()
        assert not any(path.exists() for path in shop.only_in_doomed())

    def test_a_reference_that_appears_after_the_look_is_safe_because_has_renewed_the_artifact(self, shop: Shop) -> None:
        def look() -> set[str]:
            seen = set(shop.references)
            # Another machine finds the remembered result now; its transaction commits a moment later.
            assert shop.store.has(shop.doomed.digest)
            return seen

        collector = shop.collector()
        collector.take_out(collector.plan(look, GRACE_S))
        collector.empty_trash()

        shop.assert_whole(shop.kept, shop.doomed)


class TestWritersBesideTheCollector:
    """Each test stops one side at the worst moment and lets the other go on."""

    def test_a_put_between_plan_and_rename_keeps_the_artifact(self, shop: Shop) -> None:
        collector = shop.collector()
        plan = collector.plan(lambda: shop.references, GRACE_S)

        shop.put_doomed_again()
        taken_out = collector.take_out(plan)

        assert taken_out.artifacts == taken_out.chunks == Amount()
        shop.assert_whole(shop.kept, shop.doomed)

    @pytest.mark.parametrize("ask", [True, False], ids=["has", "put"])
    def test_a_renewal_between_the_collectors_look_and_its_rename_puts_the_artifact_back(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch, ask: bool
    ) -> None:
        # given a collector that stops between stat and rename, where the other side does all of its work
        collector, real, renewed = shop.collector(), Path.rename, []

        def late(path: Path, target: Path) -> Path:
            if not renewed and "trash" in target.parts:
                renewed.append(path)
                if ask:
                    assert shop.store.has(shop.doomed.digest)
                else:
                    shop.put_doomed_again()
            return real(path, target)

        monkeypatch.setattr(Path, "rename", late)
        # when
        collector.take_out(collector.plan(lambda: shop.references, GRACE_S))
        # then only that one file was taken out; a reader finds it there, and it comes back
        assert renewed == [shop.store.places.manifest(shop.doomed.digest)]
        assert [path.name for path in trash_of(shop.store)] == [renewed[0].name]
        shop.store.materialise(shop.doomed.digest, shop.root / "meanwhile")
        assert collector.empty_trash().put_back.count == 1
        shop.assert_whole(shop.kept, shop.doomed)

    def test_a_put_after_the_rename_writes_anew_and_the_trash_takes_nothing_of_it(self, shop: Shop) -> None:
        collector = shop.throw_away()
        assert len(trash_of(shop.store)) == 3

        shop.put_doomed_again()
        emptied = collector.empty_trash()

        assert emptied.removed.count == 3
        shop.assert_whole(shop.kept, shop.doomed)

    def test_has_says_no_while_an_artifact_is_in_the_trash(self, shop: Shop) -> None:
        shop.throw_away()

        assert not shop.store.has(shop.doomed.digest)

    def test_a_renewal_that_lands_on_a_file_in_the_trash_puts_it_back(self, shop: Shop) -> None:
        # given a machine that still remembers the names and renews the files where they are now
        collector = shop.throw_away()
        for path in trash_of(shop.store):
            os.utime(path)
        # when the collector looks, long after: the cutoff counts, not the age
        age(shop.store, seconds=60)
        emptied = collector.empty_trash()
        # then
        assert (emptied.removed.count, emptied.put_back.count) == (0, 3)
        shop.assert_whole(shop.kept, shop.doomed)

    def test_an_artifact_that_is_put_back_brings_all_of_its_chunks(self, shop: Shop) -> None:
        # given: only the manifest was renewed when the other side saw that something is missing
        collector = shop.throw_away()
        (manifest,) = shop.store.root.glob("trash/*/*.json")
        os.utime(manifest)

        collector.empty_trash()

        shop.assert_whole(shop.kept, shop.doomed)

    def test_putting_back_over_a_new_copy_does_not_make_that_old(self, shop: Shop) -> None:
        # given a chunk that was renewed on its way into the trash, and written anew since
        collector = shop.throw_away()
        for path in trash_of(shop.store):
            os.utime(path)
        age(shop.store, seconds=GRACE_S / 2)
        shop.put_doomed_again()
        # when
        collector.empty_trash()
        # then everything in place is young, as its writer left it
        plan = shop.collector().plan(lambda: shop.references, grace_s=GRACE_S / 4)
        assert (plan.manifests, plan.chunks) == ([], [])
        shop.assert_whole(shop.kept, shop.doomed)

    def test_a_slow_put_whose_first_chunks_were_collected_meanwhile_writes_them_again(self, shop: Shop) -> None:
        # given a writer so slow that what it put first is older than the grace period at its end
        source = shop.source("slow", {"a": b"first", "b": b"second", "c": b"third"})

        def while_it_puts(done_bytes: int, total_bytes: int) -> None:
            if done_bytes == total_bytes:
                age(shop.store)
                shop.collect()
                assert not list(shop.store.root.glob("trash/*/*"))

        # when
        slow = shop.store.put_directory(source, while_it_puts)
        # then
        shop.assert_whole(shop.kept, slow)

    def test_a_slow_put_whose_source_changed_as_well_says_so(self, shop: Shop) -> None:
        source = shop.source("slow", {"a": b"first", "b": b"second"})

        def while_it_puts(done_bytes: int, total_bytes: int) -> None:
            if done_bytes == total_bytes:
                age(shop.store)
                shop.collect()
                (source / "a").write_bytes(b"other")

        with pytest.raises(BadArtifact, match="changed while it was put"):
            shop.store.put_directory(source, while_it_puts)

    def test_a_writer_that_stops_between_its_chunks_and_its_manifest_goes_on_safely(self, shop: Shop) -> None:
        # given: all chunks of the doomed artifact are renewed, its manifest is not written yet
        for path in shop.chunks_of(shop.doomed):
            assert renew(path, shop.store.places.tmp) is not None
        # when a collector runs from beginning to end, and the writer writes its manifest
        shop.collect()
        assert not shop.store.places.manifest(shop.doomed.digest).exists()
        shop.put_doomed_again()
        # then
        shop.assert_whole(shop.kept, shop.doomed)

    def test_a_file_of_another_user_is_replaced_by_an_own_copy_to_renew_it(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (path,) = shop.chunks_of(shop.kept) & shop.chunks_of(shop.doomed)
        real = os.utime

        def only_own(file: Path, *arguments: object, **options: object) -> None:
            if file == path:
                raise PermissionError(1, "not the owner", str(file))
            real(file, *arguments, **options)  # type: ignore[arg-type]

        with monkeypatch.context() as patched:
            patched.setattr("olivepress.store.durable.os.utime", only_own)
            size_bytes = renew(path, shop.store.places.tmp)

        assert size_bytes == len(b"shared") == len(path.read_bytes())
        assert shop.store.places.now_ns() - path.stat().st_mtime_ns < 60e9


class TestReaders:
    def test_a_file_that_waits_in_the_trash_is_read_there(self, shop: Shop) -> None:
        shop.throw_away(settle_s=60)

        content = b"".join(shop.store.open_file(shop.doomed.digest, "b"))
        shop.store.materialise(shop.doomed.digest, shop.root / "target")

        assert content == b"only in doomed"

    def test_a_file_that_is_put_back_while_it_is_looked_for_is_found(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given a reader that finds neither: it looked into the trash just after the file was put back
        collector, path = shop.throw_away(), shop.store.places.manifest(shop.doomed.digest)
        for waiting in trash_of(shop.store):
            os.utime(waiting)
        real = Path.iterdir

        def late(directory: Path) -> object:
            if directory == shop.store.places.trash:
                monkeypatch.undo()
                collector.empty_trash()
            return real(directory)

        monkeypatch.setattr(Path, "iterdir", late)
        # when, then
        assert shop.store.places.read(path) == shop.doomed.to_json()


class TestTheTrash:
    def test_it_is_emptied_only_after_it_has_settled(self, shop: Shop) -> None:
        collector = shop.throw_away(settle_s=60)

        early = collector.empty_trash()
        (batch,) = shop.store.places.trash.iterdir()
        make_old(batch, seconds=61)
        late = collector.empty_trash()

        assert (early.removed, early.waiting.count) == (Amount(), 3)
        assert (late.removed.count, late.waiting) == (3, Amount())

    def test_chunks_of_an_artifact_that_waits_there_are_not_taken_out(self, shop: Shop) -> None:
        # given a collector that was killed between manifests and chunks
        collector = shop.collector(settle_s=60)
        plan = collector.plan(lambda: shop.references, GRACE_S)
        collector.take_out(type(plan)(plan.cutoff_ns, plan.manifests, []))

        plan = collector.plan(lambda: shop.references, GRACE_S)

        assert plan.chunks == []

    def test_two_collectors_with_one_plan_do_not_disturb_each_other(self, shop: Shop) -> None:
        first, second = shop.collector(), shop.collector()
        plans = [each.plan(lambda: shop.references, GRACE_S) for each in (first, second)]

        first.take_out(plans[0])
        shop.put_doomed_again()
        second.take_out(plans[1])
        second.empty_trash()
        first.empty_trash()

        shop.assert_whole(shop.kept, shop.doomed)

    def test_directories_of_other_names_stay(self, shop: Shop) -> None:
        mine = shop.store.places.trash / "mine"
        mine.mkdir()
        (mine / ("0" * 64)).write_text("mine")

        shop.collect()

        assert (mine / ("0" * 64)).exists()

    def test_a_run_that_is_told_to_stop_leaves_a_store_in_which_the_next_one_goes_on(self, shop: Shop) -> None:
        # given a collector that is stopped before its n-th file, whatever n
        stopped, is_done = 0, False
        while not is_done:
            files = itertools.count()

            def go_on(files: Iterator[int] = files, stop_at: int = stopped) -> None:
                if next(files) == stop_at:
                    raise Stopped

            collector = shop.collector(go_on=go_on)
            # when
            with contextlib.suppress(Stopped):
                collector.take_out(collector.plan(lambda: shop.references, GRACE_S))
                collector.empty_trash()
                is_done = True
            # then
            assert shop.store.has(shop.kept.digest)
            age(shop.store)
            stopped += not is_done
        assert stopped >= 5
        shop.collect()
        shop.assert_whole(shop.kept)
        assert shop.store.stats().artifacts == 1


class Stopped(Exception):
    """What a test's `go_on` raises."""


# Dies before the n-th call that changes the disk.
COLLECT = """
import itertools, os, signal, sys
from pathlib import Path
from olivepress.store import DirectoryStore
from olivepress.store.collecting import Collector
calls, fatal = itertools.count(1), int(sys.argv[3])
def deadly(name):
    real = getattr(os, name)
    def call(*arguments, **options):
        if next(calls) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    setattr(os, name, call)
collector = Collector(DirectoryStore(Path(sys.argv[1])), settle_s=0)
for name in ("rename", "unlink", "rmdir", "mkdir", "utime"):
    deadly(name)
collector.empty_trash()
collector.take_out(collector.plan(lambda: {sys.argv[2]}, 3600))
collector.empty_trash()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX signal")
@pytest.mark.parametrize("is_relied_on", [False, True])
def test_a_collector_killed_before_any_of_its_calls_is_gone_on_with_by_the_next(
    tmp_path: Path, is_relied_on: bool
) -> None:
    killed, outcome = 0, -signal.SIGKILL
    while outcome == -signal.SIGKILL:
        # given a store whose collector dies one call later than the last one
        (tmp_path / str(killed)).mkdir()
        shop = Shop(tmp_path / str(killed))
        if is_relied_on:  # something to put back
            shop.throw_away()
            for path in trash_of(shop.store):
                os.utime(path)
        arguments = [str(shop.store.root), shop.kept.digest, str(killed + 1)]
        outcome = subprocess.run([sys.executable, "-c", COLLECT, *arguments], check=False).returncode
        # then nothing that is relied on was lost at any moment, and the next run finishes the work
        shop.assert_what_can_be_seen_is_whole()
        assert shop.store.has(shop.kept.digest)
        if is_relied_on:
            shop.store.materialise(shop.doomed.digest, shop.root / "meanwhile")
        shop.collect()
        shop.assert_whole(shop.kept, *([shop.doomed] if is_relied_on else []))
        age(shop.store)
        shop.collect()
        assert shop.store.stats().artifacts == 1
        killed += outcome == -signal.SIGKILL
    assert outcome == 0
    assert killed >= 8


def test_what_dead_writers_left_is_counted_as_it_is_swept(shop: Shop) -> None:
    old, young = shop.store.places.tmp / "host-1-aa", shop.store.places.tmp / "host-2-bb"
    for path in (old, young):
        path.write_bytes(b"begun")
    make_old(old, seconds=3601)

    assert shop.collector().temporary() == Amount(1, 5)
    assert shop.store.sweep_temporary(3600) == 1

"""What else than files with other bytes can be wrong in a directory store: each is named, healed, and hangs nobody."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from olivepress.errors import BadArtifact
from olivepress.store import DirectoryStore, Manifest, keeper_of
from olivepress.store.checking import Checker, Damage
from olivepress.store.collecting import Collector
from olivepress.store.healing import Healed, Healer, Outcome
from olivepress.store.keeping import Part

NEEDS_OTHER_USER = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="to the superuser nothing is closed"
)
DAY_S = 86_400.0


class Shelf:
    """A store with two artifacts, and a copy of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = DirectoryStore(root / "store")
        self.artifacts = [self.put(number) for number in range(2)]
        shutil.copytree(root / "store", root / "copy")
        self.copy = keeper_of(DirectoryStore(root / "copy"))

    def put(self, number: int) -> Manifest:
        source = self.root / f"source-{number}"
        source.mkdir(exist_ok=True)
        (source / "own").write_bytes(f"content {number}".encode() * 100)
        return self.store.put_directory(source)

    def chunk(self, number: int) -> Path:
        return self.store.places.chunk(self.artifacts[number].files[0].sha256)

    def damages(self, *, is_fast: bool = False) -> dict[str, Damage]:
        findings = Checker(keeper_of(self.store), is_fast).run().findings
        return {finding.part.sha256: finding.damage for finding in findings}

    def heal(self) -> list[Healed]:
        absent = [each.digest for each in self.artifacts if not self.store.has(each.digest)]
        keeper = keeper_of(self.store)
        return Healer(keeper, [self.copy]).heal(Checker(keeper).run(), absent)

    def assert_whole(self) -> None:
        assert self.damages() == {}
        for number, manifest in enumerate(self.artifacts):
            assert self.store.has(manifest.digest)
            target = self.root / f"target-{number}-{time.monotonic_ns()}"
            self.store.materialise(manifest.digest, target)
            assert (target / "own").read_bytes() == (self.root / f"source-{number}" / "own").read_bytes()

    def plan(self, needed: set[str], spare: frozenset[str] = frozenset()) -> tuple[int, str | None]:
        """How many chunks a collector would take out after two days, and what it complains of."""
        for path in (*self.store.root.glob("*/??/*"),):
            os.utime(path, (time.time() - 2 * DAY_S,) * 2, follow_symlinks=False)
        plan = Collector(self.store, settle_s=0).plan(lambda: needed, DAY_S, lambda: spare)
        return len(plan.chunks), plan.problem


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


@pytest.mark.parametrize("kind", ["a link to itself", "a pipe", "a directory with files", "far too long"])
@pytest.mark.parametrize("what", ["chunk", "manifest"])
def test_what_is_no_readable_file_is_told_to_readers_found_and_healed(shelf: Shelf, kind: str, what: str) -> None:
    # given
    digest = shelf.artifacts[0].digest
    home = shelf.chunk(0) if what == "chunk" else shelf.store.places.manifest(digest)
    home.unlink()
    if kind == "a link to itself":
        home.symlink_to(home.name)
    elif kind == "a pipe":
        os.mkfifo(home)
    elif kind == "a directory with files":
        (home / "more").mkdir(parents=True)
    else:
        with home.open("wb") as hole:
            hole.truncate(1 << 36)
    # then
    assert not shelf.store.has(digest)
    with pytest.raises(BadArtifact, match="store check --repair"):
        shelf.store.materialise(digest, shelf.root / "target")
    too_long = Damage.LENGTH if what == "chunk" else Damage.ALTERED
    expected = too_long if kind == "far too long" else Damage.UNREADABLE
    assert shelf.damages() == {home.name.removesuffix(".json"): expected}
    shelf.heal()
    shelf.assert_whole()


@pytest.mark.parametrize("what", ["chunks", "manifests"])
@pytest.mark.parametrize("kind", ["a file", "a link to itself"])
def test_a_shelf_that_is_no_directory_is_found_and_makes_way_for_one(shelf: Shelf, what: str, kind: str) -> None:
    # given
    digest = shelf.artifacts[0].digest
    home = shelf.chunk(0) if what == "chunks" else shelf.store.places.manifest(digest)
    shutil.rmtree(home.parent)
    if kind == "a file":
        home.parent.write_text("whose?")
    else:
        home.parent.symlink_to(home.parent.name)
    # then
    if what == "chunks":
        assert shelf.damages() == shelf.damages(is_fast=True) == {home.name: Damage.UNREADABLE}
    assert not shelf.store.has(digest)
    with pytest.raises(BadArtifact, match="store check --repair"):
        shelf.put(0)
    assert shelf.plan({each.digest for each in shelf.artifacts})[0] == 0
    shelf.heal()
    shelf.assert_whole()


def test_a_chunk_on_another_shelf_is_missing_in_its_place_and_found_there_by_a_repair(shelf: Shelf) -> None:
    home = shelf.chunk(0)
    other = next(path for path in shelf.chunk(1).parents if path.parent.name == "chunks") / home.name
    home.rename(other)

    assert shelf.damages(is_fast=True) == shelf.damages() == {home.name: Damage.MISSING}
    keeper = keeper_of(shelf.store)
    (healed,) = Healer(keeper).heal(Checker(keeper).run())

    assert healed.outcome is Outcome.HEALED
    shelf.assert_whole()


def test_junk_in_every_directory_disturbs_neither_checks_nor_readers_nor_collectors(shelf: Shelf) -> None:
    # given
    for place in ("chunks", "manifests", "trash", "tmp", "quarantine"):
        (shelf.store.root / place / ".DS_Store").write_text("junk")
        (shelf.store.root / place / "loop").symlink_to("loop")
        (shelf.store.root / place / "directory").mkdir()
    batch = shelf.store.root / "trash" / "7-abc"
    batch.mkdir()
    (batch / shelf.chunk(0).name).symlink_to(shelf.chunk(0).name)
    for path in (shelf.store.root / "tmp").iterdir():
        os.utime(path, (0, 0), follow_symlinks=False)
    shelf.chunk(1).unlink()
    # then
    assert shelf.damages() == {shelf.chunk(1).name: Damage.MISSING}
    with pytest.raises(BadArtifact, match="its chunk is missing"):
        shelf.store.materialise(shelf.artifacts[1].digest, shelf.root / "target")
    collector = Collector(shelf.store, settle_s=0)
    assert collector.temporary().count == shelf.store.sweep_temporary(3600) == 2
    collector.empty_trash()
    shelf.heal()
    shelf.assert_whole()


def test_a_stray_directory_with_a_chunks_name_is_found_and_a_put_then_has_its_place(shelf: Shelf) -> None:
    home = shelf.store.places.chunk("ab" * 32)
    home.mkdir(parents=True)
    assert shelf.damages() == {"ab" * 32: Damage.UNREADABLE}
    assert shelf.plan({each.digest for each in shelf.artifacts}) == (1, None)
    Collector(shelf.store, settle_s=0).take_out(
        Collector(shelf.store).plan(lambda: {each.digest for each in shelf.artifacts}, DAY_S)
    )
    assert home.is_dir()

    (healed,) = shelf.heal()

    assert healed.outcome is Outcome.QUARANTINED and not home.exists()


@pytest.mark.parametrize("place", ["tmp", "trash", "quarantine", "chunks"])
def test_a_file_where_the_store_has_a_directory_is_named(shelf: Shelf, place: str) -> None:
    shutil.rmtree(shelf.store.root / place)
    (shelf.store.root / place).write_text("?")
    with pytest.raises(BadArtifact, match=f"{place} is no directory.*move aside"):
        DirectoryStore(shelf.store.root)


@NEEDS_OTHER_USER
@pytest.mark.parametrize("what", ["chunk", "manifest", "shelf"])
def test_what_is_closed_is_named_so_and_opened_by_its_owner(shelf: Shelf, what: str) -> None:
    # given
    digest = shelf.artifacts[0].digest
    home = shelf.store.places.manifest(digest) if what == "manifest" else shelf.chunk(0)
    (home.parent if what == "shelf" else home).chmod(0)
    # then
    assert shelf.damages() == {home.name.removesuffix(".json"): Damage.CLOSED}
    with pytest.raises(BadArtifact, match=r"Permission denied.*store check --repair"):
        shelf.store.materialise(digest, shelf.root / "target")
    keeper = keeper_of(shelf.store)
    (healed,) = Healer(keeper).heal(Checker(keeper).run())
    assert (healed.outcome, keeper.quarantined()) == (Outcome.HEALED, 0)
    shelf.assert_whole()


@pytest.mark.parametrize("position", ["ff" * 32, "zz", "~", "/"])
def test_a_note_whose_position_was_altered_leaves_no_chunk_unread(shelf: Shelf, position: str) -> None:
    note = {"schema_version": 1, "noted_at": time.time(), "position": position, "damaged": [], "sha256": "0" * 64}
    keeper = keeper_of(shelf.store)
    keeper.write_note(json.dumps(note).encode())
    shelf.chunk(0).chmod(0o644)
    shelf.chunk(0).write_bytes(shelf.chunk(1).read_bytes())

    assert shelf.damages() == {shelf.chunk(0).name: Damage.ALTERED}


def test_a_note_cannot_name_a_place_outside_the_store(shelf: Shelf) -> None:
    outside = shelf.root / "outside"
    outside.write_text("mine")
    part = Part("../../outside")
    checker = Checker(keeper_of(shelf.store))
    note = {"schema_version": 1, "noted_at": time.time(), "position": "", "damaged": [[part.sha256, "altered"]]}
    keeper_of(shelf.store).write_note(json.dumps(note).encode())

    Healer(keeper_of(shelf.store)).heal(checker.run())

    assert outside.read_text() == "mine"


class TestCollectingBesideDamage:
    """Chunks of an artifact whose manifest is lost cannot be told from garbage; the manifest may come back."""

    @pytest.mark.parametrize("lost", ["one manifest", "all manifests"])
    def test_no_chunk_goes_while_a_needed_manifest_is_missing(self, shelf: Shelf, lost: str) -> None:
        needed = {each.digest for each in shelf.artifacts}
        for manifest in shelf.artifacts[: 1 if lost == "one manifest" else 2]:
            shelf.store.places.manifest(manifest.digest).unlink()

        chunks, problem = shelf.plan(needed)

        assert chunks == 0
        assert problem is not None and "no chunk is removed while a manifest cannot be read" in problem
        shelf.heal()
        shelf.assert_whole()

    def test_one_that_only_memory_needs_keeps_nothing(self, shelf: Shelf) -> None:
        shelf.store.places.manifest(shelf.artifacts[0].digest).unlink()
        needed = {each.digest for each in shelf.artifacts}
        assert shelf.plan(needed, frozenset({shelf.artifacts[0].digest})) == (1, None)

    def test_one_that_waits_in_the_trash_is_not_missing(self, shelf: Shelf) -> None:
        home = shelf.store.places.manifest(shelf.artifacts[0].digest)
        batch = shelf.store.root / "trash" / "5-abc"
        batch.mkdir()
        home.rename(batch / home.name)
        assert shelf.plan({each.digest for each in shelf.artifacts}) == (0, None)

"""A check finds whatever is wrong in a store of either kind; healing puts back what exists, and deletes nothing."""

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from olivepress.errors import BadArtifact, TransientError
from olivepress.store import DirectoryStore, Manifest, keeper_of
from olivepress.store.checking import Checker, Damage, Scan
from olivepress.store.healing import Healed, Healer, Outcome
from olivepress.store.keeping import Keeper, Part
from olivepress.store.manifest import FileEntry
from tests.s3_server import S3Server, s3_server
from tests.unit.store_cases import KINDS, Opened, in_bucket, in_directory


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture(params=KINDS)
def opened(request: pytest.FixtureRequest, tmp_path: Path, server: S3Server) -> Opened:
    server.calm()
    return in_directory(tmp_path / "store") if request.param == "directory" else in_bucket(server)


class Shop:
    """A store with some artifacts that share chunks, and what looks after it."""

    def __init__(self, opened: Opened, root: Path) -> None:
        self.opened, self.root = opened, root
        self.store, self.keeper = opened.store, keeper_of(opened.store)
        shared = os.urandom(5000)
        self.artifacts = [
            self.put(f"artifact-{number}", {"shared": shared, "own": os.urandom(3000 + number), "config.json": b"{}"})
            for number in range(4)
        ]

    def put(self, name: str, files: dict[str, bytes]) -> Manifest:
        source = self.root / name
        source.mkdir()
        for path, content in files.items():
            (source / path).write_bytes(content)
        return self.store.put_directory(source)

    def scan(self, *, is_fast: bool = False) -> Scan:
        return Checker(self.keeper, is_fast).run()

    def heal(self, *others: Keeper) -> list[Healed]:
        return Healer(self.keeper, others).heal(self.scan())

    def own(self, number: int) -> str:
        """The chunk that only this artifact has."""
        return self.artifacts[number].file("own").sha256

    def shared(self) -> str:
        return self.artifacts[0].file("shared").sha256

    def assert_whole(self) -> None:
        assert self.scan().findings == []
        for number, manifest in enumerate(self.artifacts):
            target = self.root / f"target-{number}-{os.urandom(3).hex()}"
            self.store.materialise(manifest.digest, target)
            for file in manifest.files:
                assert (target / file.path).read_bytes() == (self.root / f"artifact-{number}" / file.path).read_bytes()


@pytest.fixture
def shop(opened: Opened, tmp_path: Path) -> Shop:
    return Shop(opened, tmp_path)


def flipped(content: bytes, place: int = 7) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 4
    return bytes(changed)


def damages(scan: Scan) -> dict[str, Damage]:
    return {finding.part.sha256: finding.damage for finding in scan.findings}


class TestFinding:
    def test_a_sound_store_has_no_findings_and_all_of_it_is_read(self, shop: Shop) -> None:
        scan = shop.scan()

        assert scan.findings == [] and scan.hurt == {}
        assert set(scan.artifacts) == {manifest.digest for manifest in shop.artifacts}
        assert (scan.chunks.count, scan.strays.count) == (6, 0)
        assert scan.read_bytes == scan.chunks.size_bytes == 5000 + 2 + sum(3000 + number for number in range(4))

    def test_every_kind_of_damage_is_found_with_the_artifacts_and_files_that_it_hurts(self, shop: Shop) -> None:
        # given
        read = shop.keeper.read
        shop.opened.overwrite(shop.shared(), flipped(read(Part(shop.shared()))))
        shop.opened.overwrite(shop.own(0), read(Part(shop.own(0)))[:100])
        shop.opened.overwrite(shop.own(1), None)
        shop.opened.overwrite(shop.own(2), read(Part(shop.own(2))) + b"more")
        shop.opened.overwrite(shop.artifacts[3].digest, b"{}")
        # when
        scan = shop.scan()
        # then
        assert damages(scan) == {
            shop.shared(): Damage.ALTERED,
            shop.own(0): Damage.LENGTH,
            shop.own(1): Damage.MISSING,
            shop.own(2): Damage.LENGTH,
            shop.artifacts[3].digest: Damage.ALTERED,
        }
        assert scan.hurt == {
            shop.artifacts[0].digest: ["own", "shared"],
            shop.artifacts[1].digest: ["own", "shared"],
            shop.artifacts[2].digest: ["own", "shared"],
            shop.artifacts[3].digest: [],
        }
        assert shop.own(3) not in scan.uses and scan.strays.count == 1  # its manifest could not be read

    def test_a_fast_check_reads_no_chunk_and_finds_what_is_missing_or_cut_off(
        self, shop: Shop, server: S3Server
    ) -> None:
        shop.opened.overwrite(shop.shared(), flipped(shop.keeper.read(Part(shop.shared()))))
        shop.opened.overwrite(shop.own(0), b"short")
        shop.opened.overwrite(shop.own(1), None)
        server.requests.clear()

        scan = shop.scan(is_fast=True)

        assert damages(scan) == {shop.own(0): Damage.LENGTH, shop.own(1): Damage.MISSING}
        assert scan.read_bytes == 0
        looked = [request.key for request in server.requests if request.method == "GET" and "/chunks/" in request.key]
        assert all(shop.own(0) in key or shop.own(1) in key for key in looked)

    def test_an_altered_chunk_that_no_artifact_has_is_found_too(self, shop: Shop) -> None:
        """A later put would rely on it."""
        stray = shop.store.put_chunk(b"of a put that is under way")
        shop.opened.overwrite(stray.sha256, flipped(b"of a put that is under way"))

        scan = shop.scan()

        assert damages(scan) == {stray.sha256: Damage.ALTERED}
        assert scan.hurt == {}

    def test_what_is_put_right_while_a_check_runs_is_no_finding(self, shop: Shop) -> None:
        right = shop.keeper.read(Part(shop.own(1)))
        shop.opened.overwrite(shop.own(1), flipped(right))
        mended: list[bool] = []

        def mend(done_bytes: int, total_bytes: int) -> None:
            if done_bytes == total_bytes and not mended:
                shop.opened.overwrite(shop.own(1), right)
                mended.append(True)

        assert Checker(shop.keeper, on_progress=mend).run().findings == []
        assert mended

    def test_an_artifact_that_is_collected_while_a_check_runs_is_no_finding(self, shop: Shop) -> None:
        gone = shop.artifacts[2]

        def collect(done_bytes: int, total_bytes: int) -> None:
            if gone.digest not in collected:
                collected.append(gone.digest)
                shop.opened.overwrite(gone.digest, None)
                shop.opened.overwrite(shop.own(2), None)

        collected: list[str] = []
        assert Checker(shop.keeper, on_progress=collect).run().findings == []

    @pytest.mark.parametrize("seed", range(4))
    def test_random_damage_is_found_to_the_last_part_and_healed_from_a_copy(
        self, shop: Shop, tmp_path: Path, seed: int
    ) -> None:
        chosen = random.Random(seed)
        manifests = [Part(manifest.digest, True) for manifest in shop.artifacts]
        parts = manifests + [Part(name) for name in sorted(shop.opened.chunks())]
        hurt = chosen.sample(parts, chosen.randint(1, len(parts)))
        expected = set()
        for part in hurt:
            content = shop.keeper.read(part)
            way = chosen.choice(["flip", "cut", "grow", "empty", "remove", "swap"])
            if way == "remove":
                shop.opened.overwrite(part.sha256, None)
                # That it was there, a database knows; and of chunks, the manifests that are left.
                users = [each for each in shop.artifacts if any(c.sha256 == part.sha256 for c in each.chunks())]
                if part.is_manifest or all(Part(each.digest, True) in hurt for each in users):
                    continue
            else:
                changed = {
                    "flip": flipped(content, chosen.randrange(len(content))),
                    "cut": content[: chosen.randrange(len(content))],
                    "grow": content + b"\0",
                    "empty": b"",
                    "swap": os.urandom(len(content)),
                }[way]
                shop.opened.overwrite(part.sha256, changed)
            expected.add(part)
        scan = shop.scan()
        assert {finding.part for finding in scan.findings} == expected
        # and a copy of the store heals all of it
        other = in_directory(tmp_path / "other")
        for number in range(4):
            other.store.put_directory(tmp_path / f"artifact-{number}")
        absent = [
            each.digest
            for each in shop.artifacts
            if Part(each.digest, True) in hurt and each.digest not in damages(scan)
        ]
        Healer(shop.keeper, [keeper_of(other.store)]).heal(scan, absent)
        shop.assert_whole()


class TestResuming:
    def stopped(self, shop: Shop, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        """A check that notes its position after every chunk, and is stopped after so many."""
        monkeypatch.setattr("olivepress.store.checking.NOTE_EVERY_S", 0.0)
        seen: list[int] = []

        def stop(done_bytes: int, total_bytes: int) -> None:
            seen.append(done_bytes)
            if len(seen) == after:
                raise TransientError("stopped")

        with pytest.raises(TransientError):
            Checker(shop.keeper, on_progress=stop).run()

    def test_an_interrupted_check_goes_on_where_it_was_and_keeps_what_it_had_found(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given a check that was stopped behind the first chunk, which is damaged, and a damaged one to come
        first, *_, last = sorted(shop.opened.chunks())
        for name in (first, last):
            shop.opened.overwrite(name, flipped(shop.keeper.read(Part(name)), 0))
        self.stopped(shop, monkeypatch, after=4)
        # when
        scan = Checker(shop.keeper).run()
        # then
        assert set(damages(scan)) == {first, last}
        assert 0 < scan.resumed_bytes < scan.chunks.size_bytes
        assert scan.read_bytes == scan.chunks.size_bytes - scan.resumed_bytes
        assert shop.keeper.read_note() is None
        assert shop.scan().resumed_bytes == 0

    def test_a_fast_check_in_between_leaves_the_position(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stopped(shop, monkeypatch, after=4)
        assert shop.scan(is_fast=True).resumed_bytes == 0
        assert shop.scan().resumed_bytes > 0

    def test_a_finding_that_was_mended_in_between_is_none(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        first = min(shop.opened.chunks())
        right = shop.keeper.read(Part(first))
        shop.opened.overwrite(first, flipped(right, 0))
        self.stopped(shop, monkeypatch, after=4)
        shop.opened.overwrite(first, right)
        assert Checker(shop.keeper).run().findings == []

    def test_what_was_read_too_long_ago_is_read_again(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stopped(shop, monkeypatch, after=4)
        noted_at = json.loads(shop.keeper.read_note() or b"")["noted_at"]
        assert Checker(shop.keeper, clock=lambda: noted_at + 8 * 86_400).run().resumed_bytes == 0

    @pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"schema_version": 1, "position": "ff"}', b"\xff\x00"])
    def test_a_note_that_is_damaged_too_costs_only_time(self, shop: Shop, note: bytes) -> None:
        shop.keeper.write_note(note)
        scan = shop.scan()
        assert (scan.resumed_bytes, scan.findings) == (0, [])


class TestHealing:
    def test_content_comes_back_from_another_store(self, shop: Shop, tmp_path: Path) -> None:
        # given a copy of the store, and damage of every kind
        other = in_directory(tmp_path / "other")
        for number in range(4):
            other.store.put_directory(tmp_path / f"artifact-{number}")
        shop.opened.overwrite(shop.shared(), flipped(shop.keeper.read(Part(shop.shared()))))
        shop.opened.overwrite(shop.own(0), b"")
        shop.opened.overwrite(shop.own(1), None)
        shop.opened.overwrite(shop.artifacts[3].digest, b"{}")
        # when
        healed = shop.heal(keeper_of(other.store))
        # then
        assert {each.outcome for each in healed} == {Outcome.HEALED}
        assert {each.source for each in healed} == {other.store.name}
        assert shop.keeper.quarantined() == 3
        shop.assert_whole()

    def test_a_manifest_that_comes_back_brings_the_chunks_that_nobody_missed(self, shop: Shop, tmp_path: Path) -> None:
        other = in_directory(tmp_path / "other")
        other.store.put_directory(tmp_path / "artifact-2")
        lost = shop.artifacts[2].digest
        shop.opened.overwrite(lost, None)
        shop.opened.overwrite(shop.own(2), None)
        assert shop.scan().findings == []

        healed = Healer(shop.keeper, [keeper_of(other.store)]).heal(shop.scan(), [lost])

        assert [each.outcome for each in healed] == [Outcome.HEALED] * 2
        shop.assert_whole()

    def test_what_nobody_has_goes_to_quarantine_and_its_readers_are_told(self, shop: Shop, tmp_path: Path) -> None:
        damaged = flipped(shop.keeper.read(Part(shop.own(1))))
        shop.opened.overwrite(shop.own(1), damaged)

        (healed,) = shop.heal()

        assert (healed.outcome, healed.source) == (Outcome.QUARANTINED, None)
        assert [damaged] == list(shop.keeper.copies(Part(shop.own(1))))
        assert not shop.store.has(shop.artifacts[1].digest)
        with pytest.raises(BadArtifact, match=r"'own' .* found damaged and lies in quarantine.*store check --repair"):
            shop.store.materialise(shop.artifacts[1].digest, tmp_path / "target")
        # The others are whole, and putting it again mends it.
        assert shop.store.has(shop.artifacts[0].digest)
        shop.store.put_directory(tmp_path / "artifact-1")
        shop.assert_whole()

    def test_a_flipped_bit_that_a_put_would_rely_on_is_mended_by_quarantine_and_put(
        self, shop: Shop, tmp_path: Path
    ) -> None:
        """A put looks only at the length of what is there."""
        shop.opened.overwrite(shop.shared(), flipped(shop.keeper.read(Part(shop.shared()))))
        shop.store.put_directory(tmp_path / "artifact-0")
        assert damages(shop.scan()) == {shop.shared(): Damage.ALTERED}

        shop.heal()
        shop.store.put_directory(tmp_path / "artifact-0")

        shop.assert_whole()

    def test_a_file_that_another_artifact_has_cut_elsewhere_gives_its_bytes(self, shop: Shop, tmp_path: Path) -> None:
        # given the same file as one chunk here and as two there
        content = (tmp_path / "artifact-0" / "shared").read_bytes()
        pieces = tuple(shop.store.put_chunk(each) for each in (content[:1234], content[1234:]))
        otherwise = FileEntry("renamed", len(content), shop.shared(), pieces)
        shop.store.put_manifest(Manifest.of([otherwise]))
        shop.opened.overwrite(shop.shared(), flipped(content))
        # when
        (healed,) = shop.heal()
        # then
        assert healed.outcome is Outcome.HEALED and "renamed" in (healed.source or "")
        shop.assert_whole()
        # and the other way round, when two pieces are lost
        for piece in pieces:
            shop.opened.overwrite(piece.sha256, None)
        assert [each.outcome for each in shop.heal()] == [Outcome.HEALED] * 2
        assert b"".join(shop.store.read_range(otherwise, 0, len(content))) == content

    def test_a_copy_that_is_damaged_too_heals_nothing(self, shop: Shop, tmp_path: Path) -> None:
        other = in_directory(tmp_path / "other")
        other.store.put_directory(tmp_path / "artifact-1")
        for each in (shop.opened, other):
            each.overwrite(shop.own(1), flipped(keeper_of(each.store).read(Part(shop.own(1)))))

        (healed,) = shop.heal(keeper_of(other.store))

        assert healed.outcome is Outcome.QUARANTINED

    def test_an_artifact_that_is_lost_is_set_aside_unless_its_chunks_came_back(
        self, shop: Shop, tmp_path: Path
    ) -> None:
        digest = shop.artifacts[1].digest
        assert not shop.keeper.set_aside(digest)
        assert shop.store.has(digest)
        shop.opened.overwrite(shop.own(1), None)

        assert shop.keeper.set_aside(digest)

        assert not shop.keeper.set_aside(digest)
        assert set(shop.store.manifest_digests()) == {each.digest for each in shop.artifacts} - {digest}
        assert shop.scan().findings == []
        shop.store.put_directory(tmp_path / "artifact-1")
        shop.assert_whole()

    def test_what_became_right_meanwhile_is_left_in_its_place(self, shop: Shop) -> None:
        shop.opened.overwrite(shop.own(1), flipped(right := shop.keeper.read(Part(shop.own(1)))))
        scan = shop.scan()
        shop.opened.overwrite(shop.own(1), right)

        (healed,) = Healer(shop.keeper).heal(scan)

        assert healed.outcome is Outcome.RIGHT
        shop.assert_whole()


class TestDirectory:
    def test_what_lies_in_the_trash_heals(self, tmp_path: Path) -> None:
        # given a chunk that a collector has taken out, and whose place is empty
        opened = in_directory(tmp_path / "store")
        shop = Shop(opened, tmp_path)
        batch = tmp_path / "store" / "trash" / "5-abc"
        batch.mkdir()
        (home,) = (tmp_path / "store").glob(f"chunks/*/{shop.own(0)}")
        home.rename(batch / home.name)
        # when
        (healed,) = shop.heal()
        # then
        assert healed.outcome is Outcome.HEALED and "trash" in (healed.source or "")
        assert home.exists()
        shop.assert_whole()

    @pytest.mark.parametrize("kind", ["a directory", "a pipe", "a link that leads nowhere", "a link to other content"])
    def test_what_is_no_file_is_found_and_makes_way_for_one(self, tmp_path: Path, kind: str) -> None:
        # given
        shop = Shop(in_directory(tmp_path / "store"), tmp_path)
        other = in_directory(tmp_path / "other")
        for number in range(4):
            other.store.put_directory(tmp_path / f"artifact-{number}")
        homes = [next((tmp_path / "store").glob(f"*/*/{name}*")) for name in (shop.own(0), shop.artifacts[1].digest)]
        for home in homes:
            home.unlink()
            if kind == "a directory":
                home.mkdir()
            elif kind == "a pipe":
                os.mkfifo(home)
            else:
                home.symlink_to("nowhere" if "nowhere" in kind else tmp_path / "artifact-3" / "own")
        # when
        found = {finding.part.sha256 for finding in shop.scan().findings}
        # then a manifest that is not there is missed only by the database
        assert found == {shop.own(0)} | (set() if "nowhere" in kind else {shop.artifacts[1].digest})
        Healer(shop.keeper, [keeper_of(other.store)]).heal(shop.scan(), [shop.artifacts[1].digest])
        shop.assert_whole()
        assert all(home.is_file() and not home.is_symlink() for home in homes)

    @pytest.mark.parametrize("lost", ["chunks", "manifests", "trash", "tmp", "quarantine", "chunks/*"])
    def test_whole_directories_that_are_lost_come_back(self, tmp_path: Path, lost: str) -> None:
        shop = Shop(in_directory(tmp_path / "store"), tmp_path)
        other = in_directory(tmp_path / "other")
        for number in range(4):
            other.store.put_directory(tmp_path / f"artifact-{number}")
        for directory in (tmp_path / "store").glob(lost):
            shutil.rmtree(directory)
        shop.keeper = keeper_of(DirectoryStore(tmp_path / "store"))

        healer = Healer(shop.keeper, [keeper_of(other.store)])
        healer.heal(shop.scan(), [each.digest for each in shop.artifacts if not shop.store.has(each.digest)])

        shop.assert_whole()

    def test_no_reader_misses_a_chunk_while_it_is_replaced(self, tmp_path: Path) -> None:
        """The name always leads to a file, the damaged or the right one."""
        shop = Shop(in_directory(tmp_path / "store"), tmp_path)
        home = next((tmp_path / "store").glob(f"chunks/*/{shop.own(0)}"))
        right = home.read_bytes()
        shop.opened.overwrite(shop.own(0), flipped(right))
        before = home.stat().st_ino

        shop.keeper.put(Part(shop.own(0)), right)

        (aside,) = (tmp_path / "store" / "quarantine").iterdir()
        assert aside.stat().st_ino == before != home.stat().st_ino
        assert home.read_bytes() == right

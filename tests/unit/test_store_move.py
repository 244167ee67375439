"""A store is copied into another one of any kind: whole at any time, resumable, and the source stays as it is."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from olivepress.errors import DiskFull, TransientError
from olivepress.store import DirectoryStore, Manifest, keeper_of
from olivepress.store.checking import Checker
from olivepress.store.collecting import Amount
from olivepress.store.keeping import Part
from olivepress.store.moving import Moved, Mover
from tests.s3_server import S3Server, s3_server
from tests.unit.reopened_stores import reopened
from tests.unit.store_cases import Opened, in_bucket, in_directory


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


WAYS = ["directory to bucket", "bucket to directory", "directory to directory"]


@pytest.fixture(params=WAYS)
def pair(request: pytest.FixtureRequest, tmp_path: Path, server: S3Server) -> tuple[Opened, Opened]:
    server.calm()

    def opened(kind: str, name: str) -> Opened:
        return in_directory(tmp_path / name) if kind == "directory" else in_bucket(server)

    source, _, target = request.param.partition(" to ")
    return opened(source, "source-store"), opened(target, "target-store")


@pytest.fixture
def artifacts(pair: tuple[Opened, Opened], tmp_path: Path) -> list[Manifest]:
    """Three artifacts of six chunks that are in the source; two are shared by all."""
    shared = os.urandom(4000)
    found = []
    for number in range(3):
        directory = tmp_path / f"artifact-{number}"
        directory.mkdir()
        files = {"shared": shared, "config": b"{}", "own": os.urandom(1000), "other": bytes([number])}
        for path, content in files.items():
            (directory / path).write_bytes(content)
        found.append(pair[0].store.put_directory(directory))
    return found


def move(pair: tuple[Opened, Opened], *, verify: bool = False) -> Moved:
    source, target = (keeper_of(each.store) for each in pair)
    return Mover(source, target).run(verify=verify)


def assert_whole(opened: Opened, artifacts: list[Manifest]) -> None:
    scan = Checker(keeper_of(opened.store)).run()
    assert scan.findings == []
    assert {manifest.digest for manifest in artifacts} <= set(scan.artifacts)


def test_all_artifacts_come_over_and_stay(pair: tuple[Opened, Opened], artifacts: list[Manifest]) -> None:
    chunks = pair[0].chunks()
    total = sum(chunk.size_bytes for chunk in {chunk for manifest in artifacts for chunk in manifest.chunks()})

    moved = move(pair, verify=True)

    assert moved.is_complete
    assert (moved.artifacts, moved.new_artifacts, moved.copied) == (3, 3, Amount(len(chunks), total))
    assert moved.verified_bytes == total
    for opened in pair:
        assert_whole(opened, artifacts)
    assert pair[1].chunks() == pair[0].chunks() == chunks


def test_a_second_run_copies_only_what_is_new(
    pair: tuple[Opened, Opened], artifacts: list[Manifest], tmp_path: Path
) -> None:
    move(pair)
    (tmp_path / "artifact-1" / "own").write_bytes(b"new")
    more = pair[0].store.put_directory(tmp_path / "artifact-1")

    moved = move(pair)

    assert (moved.artifacts, moved.new_artifacts, moved.copied) == (4, 1, Amount(1, 3))
    assert moved.already_there.count == len(pair[0].chunks()) - 1
    assert_whole(pair[1], [*artifacts, more])


def test_a_run_that_is_stopped_anywhere_leaves_whole_artifacts_and_is_gone_on_with(
    pair: tuple[Opened, Opened], artifacts: list[Manifest]
) -> None:
    source, target = (keeper_of(each.store) for each in pair)
    copied = 0
    for steps in (2, 2):
        left = iter(range(steps))

        def stop(left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise TransientError("stopped")

        with pytest.raises(TransientError):
            Mover(source, target, go_on=stop).run()
        assert Checker(target).run().findings == []
        assert len(pair[1].chunks()) >= copied
        copied = len(pair[1].chunks())
    assert copied > 0

    moved = move(pair)

    assert moved.copied.count == len(pair[0].chunks()) - copied
    assert_whole(pair[1], artifacts)


def test_an_artifact_that_is_damaged_in_the_source_does_not_come_over_and_the_others_do(
    pair: tuple[Opened, Opened], artifacts: list[Manifest]
) -> None:
    hurt, *others = artifacts
    pair[0].overwrite(hurt.file("own").sha256, os.urandom(1000))

    moved = move(pair)

    assert not moved.is_complete
    assert moved.failed.keys() == {hurt.digest}
    assert "'own' cannot be read from the store: its chunk is damaged" in moved.failed[hurt.digest]
    assert moved.artifacts == 2
    assert_whole(pair[1], others)
    assert not pair[1].store.has(hurt.digest)


def test_what_is_damaged_on_its_way_is_found_by_reading_back_and_put_anew(
    pair: tuple[Opened, Opened], artifacts: list[Manifest]
) -> None:
    move(pair)
    name = artifacts[0].file("shared").sha256
    pair[1].overwrite(name, os.urandom(4000))

    assert move(pair).is_complete  # by its length it is there
    moved = move(pair, verify=True)

    assert moved.is_complete
    assert_whole(pair[1], artifacts)
    assert keeper_of(pair[1].store).quarantined() == 1
    assert keeper_of(pair[1].store).read(Part(name)) == keeper_of(pair[0].store).read(Part(name))


def test_a_target_without_room_is_refused_before_anything_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = in_directory(tmp_path / "source"), in_directory(tmp_path / "target")
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "file").write_bytes(os.urandom(2000))
    source.store.put_directory(tmp_path / "artifact")
    monkeypatch.setattr(DirectoryStore, "free_bytes", lambda store: 1999)

    with pytest.raises(DiskFull, match="free some space there"):
        move((source, target))

    assert target.chunks() == set()


MOVER = """
import sys
from olivepress.store import keeper_of
from olivepress.store.moving import Mover
from tests.unit.reopened_stores import reopened
source, target = (keeper_of(reopened(each)) for each in sys.argv[1:3])
print("ready", flush=True)
Mover(source, target, lambda done, total: print(done, flush=True)).run()
"""


def test_a_run_that_is_killed_is_gone_on_with(pair: tuple[Opened, Opened], artifacts: list[Manifest]) -> None:
    for lines in (1,):
        process = subprocess.Popen(
            [sys.executable, "-c", MOVER, pair[0].address, pair[1].address], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(1 + lines):
            process.stdout.readline()
        process.kill()
        process.wait()
        process.stdout.close()
        assert Checker(keeper_of(reopened(pair[1].address))).run().findings == []

    assert move(pair).copied.count < len(pair[0].chunks())
    assert_whole(pair[1], artifacts)

"""What every kind of store must do: one suite for a directory and for a bucket."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from olivepress.errors import BadArtifact, NotFound
from olivepress.store import Chunk, Manifest, Share
from olivepress.store.manifest import CHUNK_LIMIT_BYTES, FileEntry
from tests.s3_server import S3Server, s3_server
from tests.unit.store_cases import KINDS, Opened, in_bucket, in_directory

MIB = 1024 * 1024
SIZE = 100_000
GRACE_S = 3600.0


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture(params=KINDS)
def opened(request: pytest.FixtureRequest, tmp_path: Path, server: S3Server) -> Opened:
    server.calm()
    return in_directory(tmp_path / "store") if request.param == "directory" else in_bucket(server)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model directory: nested, with an empty file, and two files of one content."""
    files = {"model.onnx.data": os.urandom(SIZE), "genai_config.json": b"{}"}
    return directory_of(tmp_path / "source", files | {"nested/copy.json": b"{}", "nested/deeper/empty": b""})


@pytest.fixture
def large(source: Path) -> Path:
    """The same with a file of two chunks."""
    (source / "model.onnx.data").write_bytes(os.urandom(CHUNK_LIMIT_BYTES + MIB))
    return source


def directory_of(directory: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


class TestPutting:
    def test_an_artifact_is_laid_out_as_it_was_put(self, opened: Opened, large: Path, tmp_path: Path) -> None:
        manifest = opened.store.put_directory(large)

        opened.store.materialise(manifest.digest, tmp_path / "target")

        assert contents(tmp_path / "target") == contents(large)
        assert opened.store.manifest(manifest.digest) == manifest
        assert opened.store.has(manifest.digest)

    def test_progress_counts_up_to_all_bytes(self, opened: Opened, source: Path) -> None:
        seen: list[tuple[int, int]] = []

        opened.store.put_directory(source, lambda done, total: seen.append((done, total)))

        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert seen[-1] == (SIZE + 4, SIZE + 4)

    def test_the_same_content_is_stored_once(self, opened: Opened, source: Path, server: S3Server) -> None:
        # given
        first = opened.store.put_directory(source)
        server.requests.clear()
        # when
        second = opened.store.put_directory(source)
        # then
        assert second == first
        stats = opened.store.stats()
        assert (stats.artifacts, stats.logical_bytes, stats.stored_bytes) == (1, SIZE + 4, SIZE + 2)
        assert not [asked for asked in server.requests if asked.method == "PUT" and "/chunks/" in asked.key]

    def test_a_link_makes_no_artifact(self, opened: Opened, source: Path) -> None:
        (source / "link").symlink_to("genai_config.json")
        with pytest.raises(BadArtifact, match="is a link or a device"):
            opened.store.put_directory(source)
        assert opened.store.stats().artifacts == 0

    def test_an_overlay_shares_everything_but_its_own_files(self, opened: Opened, source: Path, tmp_path: Path) -> None:
        package = opened.store.put_directory(source)
        before = opened.chunks()

        extended = opened.store.extend(package, {"genai_config.json": b"[]", "SHA256SUMS": b"sums"})

        opened.store.materialise(extended.digest, tmp_path / "target")
        expected = contents(source) | {"genai_config.json": b"[]", "SHA256SUMS": b"sums"}
        assert contents(tmp_path / "target") == expected
        assert len(opened.chunks() - before) == 2

    def test_an_artifact_of_chunks_that_are_not_there_is_refused(self, opened: Opened) -> None:
        there, absent = opened.store.put_chunk(b"there"), Chunk("0" * 64, 5)
        files = [FileEntry(f"file-{chunk.sha256[0]}", 5, chunk.sha256, (chunk,)) for chunk in (there, absent)]

        with pytest.raises(BadArtifact, match="lacks chunk 0000"):
            opened.store.put_manifest(Manifest.of(files))

        assert opened.store.missing(frozenset([there, absent])) == {absent}
        assert opened.store.stats().artifacts == 0

    def test_many_writers_of_one_content_make_one_artifact(self, opened: Opened, source: Path, tmp_path: Path) -> None:
        digests, errors = [], []

        def put() -> None:
            try:
                digests.append(opened.store.put_directory(source).digest)
            except Exception as error:  # the thread's edge: a test must see it
                errors.append(error)

        writers = [threading.Thread(target=put) for _ in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()

        assert not errors
        assert len(set(digests)) == 1
        opened.store.materialise(digests[0], tmp_path / "target")
        assert contents(tmp_path / "target") == contents(source)
        assert opened.store.stats().artifacts == 1

    def test_shares_count_a_chunk_once_in_each_group(self, opened: Opened, tmp_path: Path) -> None:
        first = opened.store.put_directory(directory_of(tmp_path / "1", {"a": b"shared", "b": b"one"}))
        second = opened.store.put_directory(directory_of(tmp_path / "2", {"a": b"shared", "b": b"three"}))
        other = opened.store.put_directory(directory_of(tmp_path / "3", {"a": b"shared"}))
        groups = {first.digest: "qwen2", second.digest: "qwen2", other.digest: "llama"}

        assert opened.store.shares(groups.__getitem__) == {"llama": Share(1, 6, 6), "qwen2": Share(2, 20, 14)}


class TestReading:
    def test_files_are_streamed_as_they_were_put(self, opened: Opened, source: Path) -> None:
        digest = opened.store.put_directory(source).digest
        for path, content in contents(source).items():
            assert b"".join(opened.store.open_file(digest, path)) == content

    @pytest.mark.parametrize(
        ("start", "end"),
        [
            (0, 1),
            (5, 5),
            (100, CHUNK_LIMIT_BYTES),
            (CHUNK_LIMIT_BYTES - 3, CHUNK_LIMIT_BYTES + 9),
            (17 * MIB - 4, None),
        ],
    )
    def test_a_part_of_a_file_is_streamed(self, opened: Opened, large: Path, start: int, end: int | None) -> None:
        digest = opened.store.put_directory(large).digest
        content = (large / "model.onnx.data").read_bytes()
        assert b"".join(opened.store.open_file(digest, "model.onnx.data", start, end)) == content[start:end]

    @pytest.mark.parametrize("digest", ["0" * 64, "../../etc/passwd", ""])
    def test_a_digest_that_the_store_does_not_have_is_not_found(self, opened: Opened, digest: str) -> None:
        with pytest.raises(NotFound):
            opened.store.manifest(digest)
        assert not opened.store.has(digest)

    def test_an_existing_target_is_left_as_it_is(self, opened: Opened, source: Path, tmp_path: Path) -> None:
        digest = opened.store.put_directory(source).digest
        target = directory_of(tmp_path / "target", {"mine": b"mine"})
        with pytest.raises(FileExistsError):
            opened.store.materialise(digest, target)
        assert contents(target) == {"mine": b"mine"}


class TestDamage:
    def chunk(self, manifest: Manifest) -> str:
        return manifest.file("model.onnx.data").chunks[-1].sha256

    def test_a_flipped_bit_is_found_by_every_way_of_reading(self, opened: Opened, source: Path, tmp_path: Path) -> None:
        manifest = opened.store.put_directory(source)
        content = bytearray((source / "model.onnx.data").read_bytes()[-(SIZE % CHUNK_LIMIT_BYTES) :])
        content[7] ^= 1
        opened.overwrite(self.chunk(manifest), bytes(content))

        with pytest.raises(BadArtifact, match=rf"its chunk is damaged, .*{self.chunk(manifest)}"):
            opened.store.materialise(manifest.digest, tmp_path / "target")
        with pytest.raises(BadArtifact, match="its chunk is damaged"):
            list(opened.store.open_file(manifest.digest, "model.onnx.data"))
        assert sorted(path.name for path in tmp_path.iterdir() if path.name != "store") == ["source"]

    @pytest.mark.parametrize("left", [None, b"cut off"])
    def test_a_chunk_that_is_gone_or_cut_off_is_found_and_putting_again_heals_it(
        self, opened: Opened, source: Path, tmp_path: Path, left: bytes | None
    ) -> None:
        # given
        manifest = opened.store.put_directory(source)
        opened.overwrite(self.chunk(manifest), left)
        # when, then
        assert not opened.store.has(manifest.digest)
        with pytest.raises(BadArtifact, match=r"its chunk is (missing|damaged)"):
            opened.store.materialise(manifest.digest, tmp_path / "target")
        # when, then
        assert opened.store.put_directory(source) == manifest
        assert opened.store.has(manifest.digest)
        opened.store.materialise(manifest.digest, tmp_path / "target")

    def test_a_damaged_manifest_is_found_and_putting_again_heals_it(self, opened: Opened, source: Path) -> None:
        manifest = opened.store.put_directory(source)
        opened.overwrite(manifest.digest, b"{}")

        with pytest.raises(BadArtifact, match=f"manifest of artifact {manifest.digest} is damaged"):
            opened.store.manifest(manifest.digest)
        assert not opened.store.has(manifest.digest)
        assert opened.store.stats().artifacts == 0

        assert opened.store.put_directory(source) == manifest
        assert opened.store.has(manifest.digest)


WRITER = """
import sys
from pathlib import Path
from tests.unit.reopened_stores import reopened
store = reopened(sys.argv[1])
print("ready", flush=True)
store.put_directory(Path(sys.argv[2]), lambda done, total: print(done, flush=True))
print("put", flush=True)
"""


class TestKills:
    @pytest.mark.parametrize("lines", [1, 6])
    def test_a_writer_that_is_killed_leaves_nothing_half_visible(
        self, opened: Opened, tmp_path: Path, lines: int
    ) -> None:
        # given a writer that is killed after so many chunks
        files = {f"file-{number}": os.urandom(MIB) for number in range(10)}
        source = directory_of(tmp_path / "source", files)
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, opened.address, str(source)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(1 + lines):
            writer.stdout.readline()
        # when
        writer.kill()
        writer.wait()
        writer.stdout.close()
        # then
        stats = opened.store.stats()
        assert stats.logical_bytes == stats.artifacts * 10 * MIB
        manifest = opened.store.put_directory(source)
        opened.store.materialise(manifest.digest, tmp_path / "target")
        assert contents(tmp_path / "target") == files


class TestCollecting:
    @pytest.fixture
    def two(self, opened: Opened, tmp_path: Path) -> tuple[Manifest, Manifest]:
        """Two artifacts that share a chunk, put long ago."""
        put = opened.store.put_directory
        kept = put(directory_of(tmp_path / "kept", {"a": b"shared", "b": b"only in kept"}))
        doomed = put(directory_of(tmp_path / "doomed", {"a": b"shared", "b": b"only in doomed", "c": b"this too"}))
        opened.make_older(3 * GRACE_S)
        return kept, doomed

    def collect(self, opened: Opened, references: set[str], between: Callable[[], object] = lambda: None) -> int:
        """One run, with something between announcing and removing; answers how many files were removed."""
        collector = opened.collector()
        collector.take_out(collector.plan(lambda: references, GRACE_S))
        between()
        return collector.empty_trash().removed.count

    def test_what_is_old_and_unreferenced_goes_and_the_rest_stays(
        self, opened: Opened, two: tuple[Manifest, Manifest], tmp_path: Path
    ) -> None:
        kept, doomed = two

        assert self.collect(opened, {kept.digest}) == 3

        assert not opened.store.has(doomed.digest)
        assert opened.chunks() == {chunk.sha256 for chunk in kept.chunks()}
        opened.store.materialise(kept.digest, tmp_path / "target")
        assert contents(tmp_path / "target") == {"a": b"shared", "b": b"only in kept"}

    def test_what_somebody_was_told_is_there_stays(self, opened: Opened, two: tuple[Manifest, Manifest]) -> None:
        kept, doomed = two
        assert opened.store.has(doomed.digest)

        assert self.collect(opened, {kept.digest}) == 0

        assert opened.store.has(doomed.digest)

    def test_what_is_put_again_stays(self, opened: Opened, two: tuple[Manifest, Manifest], tmp_path: Path) -> None:
        kept, doomed = two
        opened.store.put_directory(tmp_path / "doomed")

        assert self.collect(opened, {kept.digest}) == 0

        assert opened.store.has(doomed.digest)

    def test_a_plan_changes_nothing(self, opened: Opened, two: tuple[Manifest, Manifest]) -> None:
        kept, doomed = two
        plan = opened.collector().plan(lambda: {kept.digest}, GRACE_S)
        assert (plan.artifacts.count, plan.chunk_files.count) == (1, 2)
        assert opened.store.has(doomed.digest)

    def test_a_database_that_refers_to_nothing_here_costs_nothing(
        self, opened: Opened, two: tuple[Manifest, Manifest]
    ) -> None:
        plan = opened.collector().plan(lambda: {"0" * 64}, GRACE_S)
        assert plan.problem is not None and "refers to none of the 2 artifacts" in plan.problem
        assert self.collect(opened, {"0" * 64}) == 0

    def test_what_grew_old_again_after_it_was_renewed_goes(
        self, opened: Opened, two: tuple[Manifest, Manifest]
    ) -> None:
        kept, doomed = two
        assert opened.store.has(doomed.digest)
        opened.make_older(3 * GRACE_S)
        assert self.collect(opened, {kept.digest}) == 3

    def test_the_next_collector_goes_on_where_one_was_killed(
        self, opened: Opened, two: tuple[Manifest, Manifest]
    ) -> None:
        kept, _ = two
        first = opened.collector()
        first.take_out(first.plan(lambda: {kept.digest}, GRACE_S))

        assert opened.collector().trash().count == 3
        assert opened.collector().empty_trash().removed.count == 3

        assert opened.collector().trash().count == 0
        assert opened.chunks() == {chunk.sha256 for chunk in kept.chunks()}

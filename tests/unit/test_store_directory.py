"""An artifact comes back exactly as it was put, or reading it says what is damaged."""

import errno
import os
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from olivepress.errors import BadArtifact, DiskFull, NotFound
from olivepress.store import DirectoryStore, StoreStats

MIB = 1024 * 1024


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model directory: nested, with an empty file, a file of two chunks, and two files of one content."""
    source = tmp_path / "source"
    (source / "nested" / "deeper").mkdir(parents=True)
    (source / "model.onnx.data").write_bytes(os.urandom(17 * MIB))
    (source / "genai_config.json").write_text("{}")
    (source / "nested" / "copy.json").write_text("{}")
    (source / "nested" / "deeper" / "empty").write_bytes(b"")
    return source


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def chunk_files(store: DirectoryStore) -> list[Path]:
    return sorted(store.root.glob("chunks/*/*"))


def temporary_files(store: DirectoryStore) -> list[Path]:
    return list((store.root / "tmp").iterdir())


def test_an_artifact_is_laid_out_as_it_was_put(store: DirectoryStore, source: Path, tmp_path: Path) -> None:
    manifest = store.put_directory(source)
    store.materialise(manifest.digest, tmp_path / "target")
    assert contents(tmp_path / "target") == contents(source)
    assert store.manifest(manifest.digest) == manifest
    assert store.has(manifest.digest)
    assert temporary_files(store) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "store", "target"]


def test_files_are_streamed_as_they_were_put(store: DirectoryStore, source: Path) -> None:
    manifest = store.put_directory(source)
    for path, content in contents(source).items():
        assert b"".join(store.open_file(manifest.digest, path)) == content
        assert manifest.file(path).size_bytes == len(content)


def test_the_same_content_is_one_artifact_and_is_written_once(store: DirectoryStore, source: Path) -> None:
    # given
    first = store.put_directory(source)
    written = {path: path.stat().st_ino for path in store.root.rglob("*") if path.is_file()}
    # when
    second = store.put_directory(source)
    # then
    assert second.digest == first.digest
    assert {path: path.stat().st_ino for path in store.root.rglob("*") if path.is_file()} == written
    assert store.stats() == StoreStats(artifacts=1, logical_bytes=17 * MIB + 4, stored_bytes=17 * MIB + 2)


def test_chunks_are_read_only(store: DirectoryStore, source: Path) -> None:
    store.put_directory(source)
    assert {stat.S_IMODE(path.stat().st_mode) & 0o222 for path in chunk_files(store)} == {0}


def test_progress_counts_up_to_all_bytes(store: DirectoryStore, source: Path) -> None:
    seen: list[tuple[int, int]] = []
    store.put_directory(source, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (17 * MIB + 4, 17 * MIB + 4)


def test_a_large_file_is_never_whole_in_memory(store: DirectoryStore, tmp_path: Path) -> None:
    # given a file of 192 MiB that takes no room on the disk
    (tmp_path / "source").mkdir()
    with (tmp_path / "source" / "model.bin").open("wb") as file:
        file.truncate(192 * MIB)
    # when
    tracemalloc.start()
    try:
        manifest = store.put_directory(tmp_path / "source")
        store.materialise(manifest.digest, tmp_path / "target")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # then
    assert peak_bytes < 128 * MIB
    assert store.stats().stored_bytes == 16 * MIB


def test_an_overlay_shares_everything_but_its_own_files(store: DirectoryStore, source: Path, tmp_path: Path) -> None:
    # given
    package = store.put_directory(source)
    before = set(chunk_files(store))
    # when publish adds a file, an empty one, and replaces one
    added = {"inference_model.json": b'{"Name":"x:1"}', "empty": b"", "genai_config.json": b"{ }"}
    published = store.extend(package, added)
    # then
    store.materialise(published.digest, tmp_path / "target")
    assert contents(tmp_path / "target") == contents(source) | added
    assert len(set(chunk_files(store)) - before) == 2
    assert store.manifest(package.digest) == package


def test_an_overlay_on_chunks_that_are_gone_is_refused(store: DirectoryStore, source: Path) -> None:
    package = store.put_directory(source)
    chunk_files(store)[0].unlink()
    with pytest.raises(BadArtifact, match="lacks chunk"):
        store.extend(package, {"inference_model.json": b"of another content"})
    assert store.stats().artifacts == 1


@pytest.mark.parametrize("path", ["../escape", "GENAI_CONFIG.json", "nested"])
def test_an_overlay_with_a_bad_path_is_refused(store: DirectoryStore, source: Path, path: str) -> None:
    package = store.put_directory(source)
    with pytest.raises(BadArtifact):
        store.extend(package, {path: b"{}"})
    assert store.stats().artifacts == 1


def test_a_flipped_bit_is_found_by_every_way_of_reading(store: DirectoryStore, source: Path, tmp_path: Path) -> None:
    # given one wrong bit in the second chunk of the weights
    manifest = store.put_directory(source)
    damaged = store.root / "chunks" / (name := manifest.file("model.onnx.data").chunks[1].sha256)[:2] / name
    content = bytearray(damaged.read_bytes())
    content[1000] ^= 1
    damaged.chmod(0o644)
    damaged.write_bytes(content)
    # when, then
    with pytest.raises(BadArtifact, match=rf"'model.onnx.data'.*damaged.*{name}.*store check --repair"):
        store.materialise(manifest.digest, tmp_path / "target")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "store"]
    received = []
    with pytest.raises(BadArtifact, match="damaged"):
        for piece in store.open_file(manifest.digest, "model.onnx.data"):
            received.append(piece)
    assert [len(piece) for piece in received] == [16 * MIB]


def test_a_missing_chunk_is_named_and_putting_again_mends_it(
    store: DirectoryStore, source: Path, tmp_path: Path
) -> None:
    # given
    manifest = store.put_directory(source)
    name = manifest.file("genai_config.json").chunks[0].sha256
    (store.root / "chunks" / name[:2] / name).unlink()
    # when, then
    assert not store.has(manifest.digest)
    with pytest.raises(BadArtifact, match=rf"'genai_config.json'.*missing.*{name}"):
        store.materialise(manifest.digest, tmp_path / "target")
    store.put_directory(source)
    assert store.has(manifest.digest)
    store.materialise(manifest.digest, tmp_path / "target")


def test_a_chunk_that_the_file_system_cut_off_is_written_anew(
    store: DirectoryStore, source: Path, tmp_path: Path
) -> None:
    manifest = store.put_directory(source)
    chunk = chunk_files(store)[0]
    chunk.chmod(0o644)
    os.truncate(chunk, 1)
    assert not store.has(manifest.digest)
    store.put_directory(source)
    store.materialise(manifest.digest, tmp_path / "target")
    assert contents(tmp_path / "target") == contents(source)


def test_a_damaged_manifest_is_found_and_putting_again_mends_it(store: DirectoryStore, source: Path) -> None:
    # given
    digest = store.put_directory(source).digest
    path = store.root / "manifests" / digest[:2] / f"{digest}.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"empty", b"EMPTY"))
    # when, then
    with pytest.raises(BadArtifact, match="damaged"):
        store.manifest(digest)
    assert not store.has(digest)
    assert store.stats().artifacts == 0
    store.put_directory(source)
    assert store.has(digest)


@pytest.mark.parametrize("digest", ["0" * 64, "../../etc/passwd", "", "0" * 63 + "\n", "A" * 64])
def test_a_digest_that_the_store_does_not_have_is_not_found(store: DirectoryStore, digest: str, tmp_path: Path) -> None:
    assert not store.has(digest)
    for read in (store.manifest, lambda d: store.open_file(d, "x"), lambda d: store.materialise(d, tmp_path / "t")):
        with pytest.raises(NotFound):
            read(digest)


def test_a_file_that_the_artifact_lacks_is_not_found_before_anything_is_streamed(
    store: DirectoryStore, source: Path
) -> None:
    digest = store.put_directory(source).digest
    with pytest.raises(NotFound, match=r"weights\.bin"):
        store.open_file(digest, "weights.bin")


def test_an_existing_target_is_left_as_it_is(store: DirectoryStore, source: Path, tmp_path: Path) -> None:
    digest = store.put_directory(source).digest
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").touch()
    with pytest.raises(FileExistsError):
        store.materialise(digest, tmp_path / "target")
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["mine"]


def test_an_empty_directory_is_no_artifact(store: DirectoryStore, tmp_path: Path) -> None:
    (tmp_path / "empty" / "nested").mkdir(parents=True)
    with pytest.raises(BadArtifact, match="has no files"):
        store.put_directory(tmp_path / "empty")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
@pytest.mark.parametrize("target", ["genai_config.json", "nested", "nowhere", "/etc/hostname"])
def test_a_link_is_refused_wherever_it_points(store: DirectoryStore, source: Path, target: str) -> None:
    (source / "link").symlink_to(target)
    with pytest.raises(BadArtifact, match="link"):
        store.put_directory(source)


@pytest.mark.skipif(sys.platform == "win32", reason="such a file cannot exist there")
def test_a_name_that_windows_forbids_is_refused_before_anything_is_written(store: DirectoryStore, source: Path) -> None:
    (source / "what?.json").touch()
    with pytest.raises(BadArtifact, match=r"what\?\.json.*Windows"):
        store.put_directory(source)
    assert chunk_files(store) == []


def test_a_file_that_changes_while_it_is_put_makes_no_artifact(store: DirectoryStore, source: Path) -> None:
    def grow(done_bytes: int, total_bytes: int) -> None:
        with (source / "model.onnx.data").open("ab") as file:
            file.write(b"more")

    os.truncate(source / "model.onnx.data", 144 * MIB)  # more than is read ahead
    with pytest.raises(BadArtifact, match="changed while it was put"):
        store.put_directory(source, on_progress=grow)
    assert store.stats().artifacts == 0


def test_only_old_temporary_files_are_swept(store: DirectoryStore) -> None:
    # given what a writer left an hour ago, and what one writes now
    old, young = store.root / "tmp" / "host-1-aa", store.root / "tmp" / "host-2-bb"
    for path in (old, young):
        path.touch(mode=0o444)
    os.utime(old, (old.stat().st_mtime - 3600,) * 2)
    # when, then
    assert store.sweep_temporary(older_than_s=1800) == 1
    assert temporary_files(store) == [young]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_leaves_nothing(
    store: DirectoryStore, source: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    # given a disk that is full after one chunk
    real, calls = os.fsync, iter(range(1000))

    def full(descriptor: int) -> None:
        if next(calls) >= 1:
            raise OSError(code, os.strerror(code))
        real(descriptor)

    # when
    with monkeypatch.context() as patched:
        patched.setattr("olivepress.store.durable.os.fsync", full)
        with pytest.raises(DiskFull, match=rf"No room is left on the disk of {store.root}: up to 17.0 MiB"):
            store.put_directory(source)
    # then nothing can be seen, and with room again it works
    assert temporary_files(store) == []
    assert store.stats().artifacts == 0
    assert store.has(store.put_directory(source).digest)


def test_another_error_of_the_disk_stays_what_it_is(
    store: DirectoryStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr("olivepress.store.durable.os.fsync", broken)
    with pytest.raises(OSError, match="broken"):
        store.put_directory(source)
    assert temporary_files(store) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root on Linux")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not let root mount")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_putting_into_a_store_on_a_disk_that_is_too_small_says_so(small_disk: Path, source: Path) -> None:
    store = DirectoryStore(small_disk / "store")
    with pytest.raises(DiskFull, match=r"17\.0 MiB were needed, \d\.\d MiB are free"):
        store.put_directory(source)
    assert temporary_files(store) == []


def test_laying_out_on_a_disk_that_is_too_small_leaves_nothing(
    store: DirectoryStore, small_disk: Path, source: Path
) -> None:
    digest = store.put_directory(source).digest
    with pytest.raises(DiskFull, match=r"17\.0 MiB were needed"):
        store.materialise(digest, small_disk / "target")
    assert list(small_disk.iterdir()) == []

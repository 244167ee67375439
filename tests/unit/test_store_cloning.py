"""Where the file system shares blocks, an artifact is laid out without a copy, and neither side can harm the other."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from olivepress.errors import BadArtifact
from olivepress.store import DirectoryStore
from olivepress.store.cloning import clone_into, may_share

MIB = 1024 * 1024
FILES = {"model.onnx.data": os.urandom(17 * MIB + 5), "config.json": b"{}", "empty": b""}


@pytest.fixture
def sharing_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that shares blocks."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or not shutil.which("mkfs.xfs"):
        pytest.skip("mounting a file system that shares blocks needs root on Linux and mkfs.xfs")
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(400 * MIB)
    commands = (["mkfs.xfs", "-q", "-m", "reflink=1", image], ["mount", "-o", "loop", image, disk])
    if any(subprocess.run(command, capture_output=True).returncode for command in commands):
        pytest.skip("this machine does not let root mount an XFS image")
    yield disk
    subprocess.run(["umount", disk], check=True)


def source_of(root: Path) -> Path:
    source = root / "source"
    source.mkdir()
    for name, content in FILES.items():
        (source / name).write_bytes(content)
    return source


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_layout_takes_no_room_and_writing_to_it_leaves_the_store_whole(sharing_disk: Path, tmp_path: Path) -> None:
    # given
    store = DirectoryStore(sharing_disk / "store")
    digest = store.put_directory(source_of(tmp_path)).digest
    os.sync()
    free = shutil.disk_usage(sharing_disk).free
    # when
    store.materialise(digest, sharing_disk / "target")
    os.sync()
    # then
    assert contents(sharing_disk / "target") == FILES
    assert free - shutil.disk_usage(sharing_disk).free < MIB
    # when
    with (sharing_disk / "target/model.onnx.data").open("r+b") as file:
        file.write(b"damaged by a tool")
    # then
    store.materialise(digest, sharing_disk / "again")
    assert contents(sharing_disk / "again") == FILES


def test_a_damaged_chunk_is_not_shared(sharing_disk: Path, tmp_path: Path) -> None:
    store = DirectoryStore(sharing_disk / "store")
    manifest = store.put_directory(source_of(tmp_path))
    chunk = Path(store.place_of_chunk(manifest.file("model.onnx.data").chunks[0].sha256))
    chunk.chmod(0o644)
    with chunk.open("r+b") as file:
        file.write(b"damage")

    with pytest.raises(BadArtifact, match="its chunk is damaged"):
        store.materialise(manifest.digest, sharing_disk / "target")
    assert not (sharing_disk / "target").exists()


def test_a_target_on_another_file_system_is_copied(sharing_disk: Path, tmp_path: Path) -> None:
    store = DirectoryStore(sharing_disk / "store")
    digest = store.put_directory(source_of(tmp_path)).digest
    store.materialise(digest, tmp_path / "target")
    assert contents(tmp_path / "target") == FILES


def test_files_of_two_file_systems_cannot_share(sharing_disk: Path, tmp_path: Path) -> None:
    (sharing_disk / "source").write_bytes(bytes(4096))
    (tmp_path / "target").write_bytes(b"x" * 4096)
    assert not clone_into(sharing_disk / "source", tmp_path / "target", 0)
    assert (tmp_path / "target").read_bytes() == b"x" * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="nothing is shared there")
@pytest.mark.parametrize(
    ("offset", "size_bytes", "target_size_bytes", "expected"),
    [(0, 4096, 9999, True), (4096, 8192, 99999, True), (0, 5, 5, True), (8192, 5, 8197, True),
     (0, 5, 6, False), (5, 4096, 9999, False), (4096, 4097, 99999, False)],
)  # fmt: skip
def test_only_whole_blocks_and_ends_of_files_can_be_shared(
    offset: int, size_bytes: int, target_size_bytes: int, expected: bool
) -> None:
    assert may_share(offset, size_bytes, target_size_bytes) is expected

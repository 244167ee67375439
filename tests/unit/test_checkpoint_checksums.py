"""Checksums that came with a checkpoint bind: one flipped bit anywhere is found."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from olivepress.checkpoints.checksums import check_listed, check_sums, expected_checksums
from olivepress.checkpoints.files import HashedFile, hash_file
from olivepress.errors import BadCheckpoint
from tests.unit.plain_checkpoints import write_checkpoint

WEIGHTS = "model.safetensors"
GOOD = hashlib.sha256(b"good").hexdigest()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


def check(checkpoint: Path) -> None:
    """What ingest does: read what is expected, hash, compare."""
    names = sorted(path.name for path in checkpoint.iterdir() if path.is_file())
    expected = expected_checksums(checkpoint, names)
    check_listed(checkpoint, expected)
    files = [HashedFile(name, (checkpoint / name).stat().st_size, hash_file(checkpoint / name)) for name in names]
    check_sums(checkpoint, files, expected)


def flip_a_bit(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


FORMS = {
    "coreutils": ("SHA256SUMS", "{sum}  model.safetensors\n"),
    "coreutils, binary, with a dot": ("SHA256SUMS", "# made by hand\n\n{sum} *./model.safetensors\r\n"),
    "BSD": ("SHA256SUMS", "SHA256 (model.safetensors) = {sum}\n"),
    "a file for each, hash alone": ("model.safetensors.sha256", "{sum}\n"),
    "a file for each, with the name": ("model.safetensors.sha256", "{SUM}  model.safetensors"),
    "a list under another name": ("release.sha256", "{sum}  model.safetensors\n"),
}


@pytest.mark.parametrize(("name", "text"), FORMS.values(), ids=FORMS)
def test_every_usual_form_of_checksums_finds_one_flipped_bit(checkpoint: Path, name: str, text: str) -> None:
    digest = hash_file(checkpoint / WEIGHTS)
    (checkpoint / name).write_bytes(text.format(sum=digest, SUM=digest.upper()).encode())
    check(checkpoint)

    flip_a_bit(checkpoint / WEIGHTS)

    with pytest.raises(BadCheckpoint) as refusal:
        check(checkpoint)
    assert f"{checkpoint / WEIGHTS} is damaged or was changed" in str(refusal.value)
    assert f"{name} says {digest[:12]}…" in str(refusal.value)


def test_a_checksum_covers_the_tokenizer_as_well(checkpoint: Path) -> None:
    (checkpoint / "SHA256SUMS").write_text(f"{hash_file(checkpoint / 'tokenizer.json')}  tokenizer.json\n")

    flip_a_bit(checkpoint / "tokenizer.json")

    with pytest.raises(BadCheckpoint, match=r"tokenizer\.json is damaged or was changed"):
        check(checkpoint)


def test_a_relevant_file_that_is_listed_and_not_there_is_refused(checkpoint: Path) -> None:
    (checkpoint / "SHA256SUMS").write_text(f"{GOOD}  model-00002-of-00002.safetensors\n{GOOD}  README.md\n")

    with pytest.raises(BadCheckpoint, match=r"has no model-00002-of-00002\.safetensors, which SHA256SUMS lists"):
        check(checkpoint)


def test_files_that_do_not_count_may_be_listed_and_absent(checkpoint: Path) -> None:
    (checkpoint / "SHA256SUMS").write_text(f"{GOOD}  README.md\n{GOOD}  onnx/model.safetensors\n")

    check(checkpoint)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SHA256SUMS", "d41d8cd98f00b204e9800998ecf8427e  model.safetensors\n"),
        ("SHA256SUMS", f"{GOOD}\n"),
        ("model.safetensors.sha256", "0 bytes\n"),
    ],
)
def test_a_line_that_is_no_checksum_is_refused_with_its_number(checkpoint: Path, name: str, text: str) -> None:
    (checkpoint / name).write_text(text)

    with pytest.raises(BadCheckpoint, match=f"{name} line 1 is no checksum"):
        check(checkpoint)


def test_a_list_that_is_no_text_is_refused(checkpoint: Path) -> None:
    (checkpoint / "SHA256SUMS").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(BadCheckpoint, match="SHA256SUMS is no list of checksums"):
        check(checkpoint)


def test_the_hubs_cache_tells_the_checksum_by_the_name_of_the_blob(checkpoint: Path) -> None:
    digest = hash_file(checkpoint / WEIGHTS)
    blob = checkpoint.parent / "blobs" / digest
    blob.parent.mkdir()
    (checkpoint / WEIGHTS).rename(blob)
    (checkpoint / WEIGHTS).symlink_to(blob)
    check(checkpoint)

    flip_a_bit(blob)

    with pytest.raises(BadCheckpoint, match="its name in the hub's cache says"):
        check(checkpoint)


class TestDownloadRecords:
    """`hf download --local-dir` leaves commit, etag and time of each file under .cache/huggingface/download."""

    def record(self, checkpoint: Path, etag: str, written_at: float) -> None:
        path = checkpoint / ".cache" / "huggingface" / "download" / f"{WEIGHTS}.metadata"
        path.parent.mkdir(parents=True)
        path.write_text(f"{'0' * 40}\n{etag}\n{written_at}\n")

    def test_a_record_finds_a_bit_that_rotted_after_the_download(self, checkpoint: Path) -> None:
        self.record(checkpoint, hash_file(checkpoint / WEIGHTS), time.time())
        state = (checkpoint / WEIGHTS).stat()
        flip_a_bit(checkpoint / WEIGHTS)
        os.utime(checkpoint / WEIGHTS, ns=(state.st_atime_ns, state.st_mtime_ns))

        with pytest.raises(BadCheckpoint, match=r"its download record .* says"):
            check(checkpoint)

    def test_a_record_does_not_bind_a_file_that_was_changed_on_purpose_later(self, checkpoint: Path) -> None:
        self.record(checkpoint, GOOD, time.time() - 3600)

        check(checkpoint)

    def test_the_etag_of_a_small_file_is_no_checksum(self, checkpoint: Path) -> None:
        self.record(checkpoint, "a" * 40, time.time() + 3600)

        check(checkpoint)

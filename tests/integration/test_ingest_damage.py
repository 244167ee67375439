"""Damage to the bytes of a weight file: what is found by itself, and what a checksum is needed for."""

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from olivepress.checkpoints.safetensors_header import read_safetensors_header
from olivepress.errors import BadCheckpoint, CheckpointChanged
from tests.integration.ingest_cases import DOWN, copy_of, edit_weights, run, sound
from workers.toolchains import weights

pytestmark = pytest.mark.toolchain

__all__ = ["copy_of", "sound"]

TOP_EXPONENT_BIT = 6


def flip_bit(path: Path, place: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


def place_of_an_ordinary_number(path: Path, tensor_name: str) -> int:
    """Where the last byte (sign and exponent, little-endian) of a number between 0.05 and 0.5 lies."""
    values = load_file(path)[tensor_name].flatten()
    index = int(((values.abs() > 0.05) & (values.abs() < 0.5)).nonzero()[0])
    (tensor,) = (tensor for tensor in read_safetensors_header(path).tensors if tensor.name == tensor_name)
    return tensor.start + (index + 1) * values.element_size() - 1


class TestFlippedBits:
    @pytest.mark.parametrize("name", ["qwen2", "llama", "fp32"])
    def test_a_flipped_top_bit_of_an_exponent_is_found_in_every_format(
        self, copy_of: Callable[[str], Path], name: str
    ) -> None:
        directory = copy_of(name)
        path = next(path for path in sorted(directory.glob("*.safetensors")) if DOWN in load_file(path))

        flip_bit(path, place_of_an_ordinary_number(path, DOWN), TOP_EXPONENT_BIT)

        with pytest.raises(BadCheckpoint, match=rf"'{DOWN}' in {path} (looks damaged|holds 1 (NaN|infinite))"):
            run(directory)

    def test_a_bit_that_changes_a_number_a_little_is_found_by_a_checksum(self, copy_of: Callable[[str], Path]) -> None:
        directory = copy_of("qwen2")
        path = directory / "model.safetensors"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        (directory / "SHA256SUMS").write_text(f"{digest}  model.safetensors\n")
        run(directory)

        flip_bit(path, place_of_an_ordinary_number(path, DOWN) - 1, 0)

        with pytest.raises(BadCheckpoint, match=r"model\.safetensors is damaged or was changed.*SHA256SUMS says"):
            run(directory)

    def test_a_checksum_of_the_base_binds_as_well(self, sound: Path, copy_of: Callable[[str], Path]) -> None:
        base = copy_of("qwen2")
        (base / "tokenizer.json.sha256").write_text("0" * 64)

        with pytest.raises(BadCheckpoint, match=rf"{base}/tokenizer\.json is damaged or was changed"):
            run(sound / "lora", base)


class TestPartsThatWereNeverWritten:
    def test_a_layer_of_zeros_is_refused(self, copy_of: Callable[[str], Path]) -> None:
        directory = copy_of("qwen2")

        edit_weights(directory, lambda tensors: [t.zero_() for name, t in tensors.items() if ".layers.1." in name])

        with pytest.raises(BadCheckpoint, match=f"every matrix of layer 1 in {directory} is all zeros"):
            run(directory)

    def test_shards_that_changed_places_are_refused(self, copy_of: Callable[[str], Path]) -> None:
        directory = copy_of("fp32")
        first, second = sorted(directory.glob("model-*.safetensors"))
        first.rename(directory / "third")
        second.rename(first)
        (directory / "third").rename(second)

        with pytest.raises(BadCheckpoint, match=r"index\.json says that '.*' .* is in .*, and it is not"):
            run(directory)


class TestWhileItIsRead:
    def test_a_file_that_changes_meanwhile_is_told_as_such(self, copy_of: Callable[[str], Path]) -> None:
        directory = copy_of("qwen2")

        def write_on(phase: str, share: float) -> None:
            if share == 1.0:
                (directory / "generation_config.json").write_text('{"eos_token_id": 1}')

        with pytest.raises(CheckpointChanged, match=f"files in {directory} or its base changed while they were read"):
            run(directory, report_progress=write_on)

    def test_a_file_that_gets_shorter_meanwhile_is_told_as_such(self, copy_of: Callable[[str], Path]) -> None:
        path = copy_of("qwen2") / "model.safetensors"
        file = read_safetensors_header(path)
        path.write_bytes(path.read_bytes()[:-10])

        with pytest.raises(CheckpointChanged, match=r"model\.safetensors got shorter while it was read"):
            weights.scan(file, lambda _: None)

    def test_a_fault_in_one_file_ends_the_reading_of_the_others(self, copy_of: Callable[[str], Path]) -> None:
        directory = copy_of("fp32")
        path = directory / "model-00002-of-00002.safetensors"
        tensors = load_file(path)
        next(iter(tensors.values())).fill_(torch.nan)
        save_file(tensors, path, metadata={"format": "pt"})

        with pytest.raises(BadCheckpoint, match=r"model-00002-of-00002\.safetensors holds"):
            run(directory)


class TestScan:
    """The scan of one file, in pieces much smaller than its tensors."""

    @pytest.fixture
    def scan(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., weights.ScannedFile]:
        monkeypatch.setattr(weights, "PIECE_BYTES", 64)

        def scan(tensors: dict[str, torch.Tensor], **options: object) -> weights.ScannedFile:
            path = tmp_path / "model.safetensors"
            save_file(tensors, path)
            counts: list[int] = []
            scanned = weights.scan(read_safetensors_header(path), counts.append, **options)  # type: ignore[arg-type]
            assert max(counts) <= 64
            assert sum(counts) == path.stat().st_size
            assert scanned.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
            return scanned

        return scan

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
    def test_numbers_that_are_none_are_counted_over_all_pieces(
        self, scan: Callable[..., weights.ScannedFile], dtype: torch.dtype
    ) -> None:
        bad = torch.ones(40, 10, dtype=dtype)
        bad[::10, 0] = torch.nan
        bad[39, 9] = -torch.inf

        with pytest.raises(BadCheckpoint, match=r"'bad' .* holds 4 NaN and 1 infinite of 400 numbers"):
            scan({"a": torch.ones(3), "bad": bad})

    def test_an_outlier_in_another_piece_than_the_rest_is_found(self, scan: Callable[..., weights.ScannedFile]) -> None:
        matrix = torch.linspace(0.1, 0.9, 400).reshape(40, 10)
        matrix[20, 5] = -1310.0

        with pytest.raises(
            BadCheckpoint, match=r"'m' .* looks damaged: it holds 1\.31e\+03, the next largest number is 0\.9"
        ):
            scan({"m": matrix})

    @pytest.mark.parametrize(
        "sound",
        [
            pytest.param(torch.tensor([[15.0] + [1e-3] * 99]), id="one number that is only rather large"),
            pytest.param(torch.tensor([[500.0, 16.0] + [1e-3] * 98]), id="two large numbers"),
            pytest.param(torch.full((10, 10), 1e4), id="all large"),
            pytest.param(torch.tensor([400.0] + [1e-3] * 99), id="an outlier in a bias"),
            pytest.param(torch.zeros(0, 4), id="empty"),
            pytest.param(torch.full((9, 9), 2**31 - 1, dtype=torch.int32), id="whole numbers"),
        ],
    )
    def test_what_training_may_leave_is_let_through(
        self, scan: Callable[..., weights.ScannedFile], sound: torch.Tensor
    ) -> None:
        assert scan({"m": sound}).zero_matrices == []

    def test_zero_matrices_are_listed_and_zero_biases_are_not(self, scan: Callable[..., weights.ScannedFile]) -> None:
        late = torch.zeros(40, 10)
        late[39, 9] = 1e-30

        scanned = scan({"bias": torch.zeros(100), "zero": torch.zeros(40, 10), "late": late})

        assert scanned.zero_matrices == ["zero"]

    def test_tensors_of_equal_content_have_equal_fingerprints(self, scan: Callable[..., weights.ScannedFile]) -> None:
        tensors = {"a": torch.ones(40, 10), "b": torch.ones(40, 10), "c": torch.full((40, 10), 2.0), "d": torch.ones(1)}

        prints = scan(tensors, fingerprint=frozenset("abc")).tensor_sha256

        assert set(prints) == {"a", "b", "c"}
        assert prints["a"] == prints["b"] != prints["c"]
        assert prints["c"] == hashlib.sha256(struct.pack("<400f", *[2.0] * 400)).hexdigest()

    def test_tensors_to_skip_are_hashed_and_not_judged(self, scan: Callable[..., weights.ScannedFile]) -> None:
        scan({"table": torch.full((40, 10), torch.inf)}, skip=lambda name: name == "table")

    def test_the_threads_of_torch_are_given_back(self) -> None:
        before = torch.get_num_threads()

        with weights.one_thread():
            assert torch.get_num_threads() == 1

        assert torch.get_num_threads() == before

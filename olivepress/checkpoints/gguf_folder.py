"""A checkpoint whose weights are one GGUF file, alone or with its config.json and tokenizer beside it."""

from dataclasses import dataclass
from pathlib import Path

from olivepress.checkpoints.files import ADAPTER_CONFIG, CONFIG, gguf_files, read_json
from olivepress.checkpoints.gguf_header import PLAIN_TYPES, GgufFile, read_gguf_header
from olivepress.checkpoints.gguf_model import Restoration, restoration_of
from olivepress.checkpoints.gguf_vocabulary import PUT_TOKENIZER, template_of, vocabulary_of
from olivepress.checkpoints.safetensors_header import SafetensorsFile, Tensor
from olivepress.checkpoints.tokenizer_files import chat_template_file, has_chat_template, has_tokenizer
from olivepress.errors import BadCheckpoint

DTYPES = {"F16": "F16", "BF16": "BF16"}
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class GgufFolder:
    """A folder with one GGUF file, and what that stands for."""

    directory: Path
    file: GgufFile
    restoration: Restoration

    @property
    def likely_dtype(self) -> str:
        """In what its tensors are restored: as the matrices are stored, where that is floating point, else F32.

        The few vectors, which are stored in F32, may not have room in it; then everything is restored in F32.
        """
        kinds = {tensor.source.type for tensor in self.restoration.tensors if len(tensor.source.shape) > 1}
        return DTYPES.get(next(iter(kinds)), "F32") if len(kinds) == 1 else "F32"

    @property
    def stored_as(self) -> str:
        """The type that most of its weights are stored in, such as F16 or Q4_K."""
        counts: dict[str, int] = {}
        for tensor in self.file.tensors.values():
            counts[tensor.type] = counts.get(tensor.type, 0) + tensor.element_count
        return max(counts, key=lambda kind: counts[kind])

    @property
    def is_quantized(self) -> bool:
        """Whether some of its weights are in blocks with a scale."""
        return any(tensor.type not in PLAIN_TYPES for tensor in self.file.tensors.values())

    def weights(self) -> SafetensorsFile:
        """The file as if it held in floating point what it stands for."""
        dtype, start = self.likely_dtype, 0
        tensors = []
        for restored in self.restoration.tensors:
            end = start + restored.source.element_count * DTYPE_BYTES[dtype]
            tensors.append(Tensor(restored.name, dtype, restored.source.shape, start, end))
            start = end
        return SafetensorsFile(self.file.path, start, 0, tuple(tensors))


def gguf_path(directory: Path) -> Path | None:
    """The one GGUF file that holds a folder's weights; None where they are in another format.

    Raises:
        BadCheckpoint: there are several.
    """
    if (directory / ADAPTER_CONFIG).is_file():
        return None
    files = gguf_files(directory)
    if len(files) > 1:
        named = ", ".join(file.name for file in files[:4]) + (", ..." if len(files) > 4 else "")
        raise BadCheckpoint(
            f"{directory} has {len(files)} GGUF files ({named}); keep the one that is meant, at best in F16 or BF16, "
            "and join the parts of a model with llama.cpp (llama-gguf-split --merge)"
        )
    return files[0] if files else None


def read_gguf_folder(directory: Path) -> GgufFolder | None:
    """The folder's GGUF file; None where its weights are in another format.

    Raises:
        BadCheckpoint: it cannot be read, or there are several.
        UnsupportedArchitecture: its architecture does not come back from GGUF as it was.
    """
    path = gguf_path(directory)
    if path is None:
        return None
    file = read_gguf_header(path)
    beside = read_json(directory / CONFIG) if (directory / CONFIG).is_file() else None
    restoration = restoration_of(file, beside)
    if not restoration.tensors:
        raise BadCheckpoint(f"{path} holds no tensors; convert the model again")
    return GgufFolder(directory, file, restoration)


def check_gguf_text(folder: GgufFolder, chosen_template: str | None = None) -> str:
    """See that there is a tokenizer and a chat template, beside the file or in it; the name of the template's file.

    Raises:
        BadCheckpoint: one is missing, or of a kind that is not read.
    """
    if not has_tokenizer(folder.directory):
        vocabulary_of(folder.file)
    if has_chat_template(folder.directory) or chosen_template:
        return chat_template_file(folder.directory, chosen_template)
    if template_of(folder.file) is None:
        raise BadCheckpoint(
            f"{folder.file.path} has no chat template, so nobody can chat with the model; {PUT_TOKENIZER}"
        )
    return folder.file.path.name

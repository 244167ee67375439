"""The sound checkpoints that the broken ones are made from."""

from pathlib import Path

import torch

from tests.checkpoints import tiny_adapter, tiny_checkpoint
from tests.gguf_files import gguf_checkpoint


def write_sound(root: Path) -> Path:
    """Write them all into `root` and return it."""
    base = tiny_checkpoint(root / "qwen2")
    llama = tiny_checkpoint(root / "llama", "llama", tied=False, dtype=torch.float16)
    gguf_checkpoint(llama, root / "gguf", "Q8_0")
    tiny_checkpoint(root / "shards", dtype=torch.float32, shards=2)
    tiny_checkpoint(root / "wide", hidden_size=96)
    tiny_checkpoint(root / "phi3", "phi3")
    tiny_adapter(root / "lora", base)
    tiny_adapter(root / "dora", base, dora=True)
    return root

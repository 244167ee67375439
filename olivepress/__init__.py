"""olivepress: fine-tuned checkpoints in, certified models for Foundry Local out."""

__version__ = "0.1.0"

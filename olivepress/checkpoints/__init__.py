"""What a checkpoint is, read from its files without loading them."""

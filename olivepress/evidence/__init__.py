"""Proof of what was published: the document, its signature, keys, verification."""

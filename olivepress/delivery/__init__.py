"""A version's way to a colleague: over the API, resumable, or as one file."""

"""Doubles of the steps that run in a child; `run` has the signature of the real ones in workers/steps."""

"""Doubles of the steps that reach for the network and write where they must not."""

"""The same of machines that share a directory over a network and remember old names of it for a while."""

import os
from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.unit.shelf_machine import BLOBS, Collection, Shelf, anything


class NetworkShelf(Shelf):
    """A directory that machines share whose file systems remember names for a while."""

    @rule(pick=anything, dies=st.booleans())
    def a_machine_renews_what_was_renamed(self, pick: int, dies: bool) -> None:
        """It still knows the old names, as a network file system's cache does; it may die behind the manifest."""
        trash = self.root / "store" / "trash"
        taken = sorted(trash.glob("*/*.json"))
        if not taken:
            return
        path = taken[pick % len(taken)]
        manifest = self.store.manifest(path.stem)
        os.utime(path)
        if dies:
            return
        homes = list((self.root / "store").glob("chunks/*/*"))
        for chunk in manifest.chunks():
            places = [each for each in (*homes, *trash.glob(f"*/{chunk.sha256}")) if each.name == chunk.sha256]
            if not places:
                return
            os.utime(places[0])
        self.rely_on(manifest)

    @rule(pick=anything, is_late=st.booleans(), writes=st.booleans(), dies_after=st.none() | st.integers(0, 4))
    def what_was_taken_out_is_renewed(self, pick: int, is_late: bool, writes: bool, dies_after: int | None) -> None:
        """The collector that looks at it then may die; a writer puts the same chunks; another collector comes later.

        `is_late`: the renewal comes when that collector is dead.
        """
        blobs = {pick % len(BLOBS), pick // 7 % len(BLOBS)}
        self.put(blobs)
        self.time_passes(1.1)
        run = self._taken_out()
        run.steps_left = [] if dies_after is None else [dies_after]
        if is_late:
            self._lives(run, run.collector.empty_trash)
        self.a_machine_renews_what_was_renamed(pick, dies=bool(pick % 2))
        if writes:
            self.time_passes(0.6)
            self.a_slow_writer_puts_chunks(blobs)
        self._lives(run, run.collector.empty_trash)
        self.what_can_be_seen_is_whole()
        self.time_passes(0.6)
        self._taken_out().collector.empty_trash()
        if writes:
            self.a_slow_writer_finishes(-1)

    @rule(pick=anything, dies_after=st.integers(1, 6))
    def a_collector_dies_while_another_looks(self, pick: int, dies_after: int) -> None:
        """What the one has taken out of an artifact is then renewed, and the rest is still in its place."""
        self.put({pick % len(BLOBS), pick // 7 % len(BLOBS)})
        self.time_passes(1.1)
        first, second = (Collection(self.opened.collector()) for _ in range(2))
        first.collector = replace(first.collector, go_on=lambda: self._take_step(first))
        self._make_plan(first)
        second.collector.empty_trash()
        first.steps_left = [dies_after]
        self._lives(first, lambda: first.collector.take_out(first.plan))
        self._make_plan(second)
        self.a_machine_renews_what_was_renamed(pick, dies=bool(pick % 2))
        second.collector.take_out(second.plan)
        second.collector.empty_trash()

    def _taken_out(self) -> Collection:
        """A run of a collector that has come as far as taking out."""
        run = Collection(self.opened.collector())
        run.collector = replace(run.collector, go_on=lambda: self._take_step(run))
        run.collector.empty_trash()
        self._make_plan(run)
        run.collector.take_out(run.plan)
        return run

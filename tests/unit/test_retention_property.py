"""However puts, publications, readers, deletions, time and collectors interleave: what is needed stays, garbage goes.

Collections run in their phases, several at a time, and die between any two of their files.

Of a directory each protection was taken out once, by hand, and a test here failed for it: the grace period, chunks that
artifacts share, the second look before a file is taken out and the one in the trash, the chunks of what is put back and
of what may yet be, every order (manifests out first and gone first, back last), that putting back renews, that readers
look into the trash, that `has` and puts renew. Two are not seen here. The look at a file's age when a collection is
planned is repeated before the file is moved: only both together are caught. And nothing here waits: that the trash
settles first is tested in test_store_collecting.py.

A bucket has few examples here, for its requests take time: of three protections of its own that were taken out none was
noticed here, and two in test_bucket_collecting.py (renewals that come before the deletion; writers that wait).
"""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.s3_server import S3Server, s3_server
from tests.unit.network_shelf import NetworkShelf
from tests.unit.shelf_machine import Shelf


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


def run_machine(machine: type[Shelf], examples: int, steps: int) -> None:
    # The same examples every time: an unlucky one fails no unrelated change.
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=chosen)


def test_a_directory_keeps_what_is_needed_and_loses_the_rest() -> None:
    run_machine(Shelf, examples=25, steps=25)


def test_a_directory_of_machines_that_remember_old_names_keeps_what_they_rely_on() -> None:
    run_machine(NetworkShelf, examples=100, steps=15)


def test_a_bucket_keeps_what_is_needed_and_loses_the_rest(server: S3Server) -> None:
    class BucketShelf(Shelf):
        pass

    BucketShelf.server = server
    run_machine(BucketShelf, examples=4, steps=14)

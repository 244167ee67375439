"""A team gets no more than its quota: not by one submission, not by several at once, not by predictions too low."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from olivepress.database.batches import WantedJob, insert_batch
from olivepress.database.quotas import (
    check_quota,
    check_version,
    note_predictions,
    quota_of,
    set_quota,
    usage_of,
)
from olivepress.database.sessions import Database
from olivepress.errors import PermanentError, QuotaExceeded
from olivepress.manifest import CheckpointEntry, parse_manifest
from olivepress.predicted_sizes import predicted_sizes
from olivepress.quotas import Quota, Usage, Wanted
from olivepress.recipes.recipe import BUILT_IN
from tests.gguf_bytes import SOUND, WEIGHTS
from tests.integration.database_cases import on_both_databases, submit_paths
from tests.integration.publication_cases import Publisher

TEAM = "default"


@pytest.fixture
def publisher(database: Database, tmp_path: Path) -> Publisher:
    return Publisher(database, tmp_path)


def limit(database: Database, team: str = TEAM, **limits: int) -> None:
    with database.write() as session:
        set_quota(session, team, Quota(**limits))


def used(database: Database, team: str = TEAM) -> Usage:
    with database.read() as session:
        return usage_of(session, team)


def at_once(calls: list[Callable[[], object]]) -> list[Exception]:
    """Call all of them in the same moment; the errors that they raised."""
    errors: list[Exception] = []
    start = threading.Barrier(len(calls))

    def call(this: Callable[[], object]) -> None:
        start.wait()
        try:
            this()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(this,)) for this in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@on_both_databases
class TestPublication:
    """The check in the transaction that publishes."""

    def test_what_passes_the_limit_is_refused_and_leaves_nothing(self, publisher: Publisher) -> None:
        publisher.publish(b"1")
        before = used(publisher.database)
        limit(publisher.database, max_bytes=2 * before.bytes - 1)

        with pytest.raises(QuotaExceeded, match="of published versions, and this one of"):
            publisher.publish(b"2")

        assert used(publisher.database).versions == 1
        assert used(publisher.database).bytes == before.bytes

    def test_a_version_that_just_fits_is_published(self, publisher: Publisher) -> None:
        publisher.publish(b"1")
        second, third = publisher.job(), publisher.job()
        limit(publisher.database, max_bytes=2 * used(publisher.database).bytes, max_versions=2)

        with publisher.database.write() as session:
            assert publisher.publish_in(session, second, publisher.package(b"2")).number == 2
        with pytest.raises(QuotaExceeded, match="as many as its quota of 2"), publisher.database.write() as session:
            publisher.publish_in(session, third, publisher.package(b"3"))

    def test_the_number_of_a_refused_version_is_given_to_the_next(self, publisher: Publisher) -> None:
        publisher.publish(b"1")
        job_id, package = publisher.job(), publisher.package(b"2")
        limit(publisher.database, max_versions=1)
        with pytest.raises(QuotaExceeded), publisher.database.write() as session:
            publisher.publish_in(session, job_id, package)
        limit(publisher.database)

        with publisher.database.write() as session:
            assert publisher.publish_in(session, job_id, package).number == 2

    def test_content_that_is_there_already_is_never_refused(self, publisher: Publisher) -> None:
        publisher.publish(b"1")
        job_id = publisher.job()
        limit(publisher.database, max_bytes=0, max_versions=0, max_jobs=0)

        with publisher.database.write() as session:
            assert not publisher.publish_in(session, job_id, publisher.package(b"1")).is_new

    def test_publications_at_once_do_not_pass_together(self, publisher: Publisher) -> None:
        # Each of another model, so that nothing but the quota makes them wait for each other.
        jobs = [publisher.job(f"m{number}") for number in range(6)]
        packages = [publisher.package(bytes([number])) for number in range(6)]
        limit(publisher.database, max_versions=3)

        def publish(job_id: int, package: str) -> None:
            with publisher.database.write() as session:
                publisher.publish_in(session, job_id, package)

        errors = at_once([lambda pair=pair: publish(*pair) for pair in zip(jobs, packages, strict=True)])  # type: ignore[misc]

        assert [type(error) for error in errors] == [QuotaExceeded] * 3
        assert used(publisher.database).versions == 3

    def test_another_teams_versions_do_not_count(self, publisher: Publisher) -> None:
        publisher.publish(b"1", team="other")
        limit(publisher.database, max_versions=1)

        assert publisher.publish(b"1").is_new

    def test_a_deleted_version_makes_room_and_may_not_come_back_without(self, publisher: Publisher) -> None:
        publisher.publish(b"1")
        limit(publisher.database, max_versions=1)
        with publisher.database.write() as session, pytest.raises(QuotaExceeded):
            check_version(session, TEAM, 1)


@on_both_databases
class TestSubmission:
    """The check in the transaction that writes jobs."""

    def test_jobs_and_what_they_may_publish_count_until_they_are_over(self, database: Database) -> None:
        (job_id,) = submit_paths(database, "/models/a", recipes=["cpu-int4"])
        with database.write() as session:
            note_predictions(session, [job_id], [700])
        assert used(database) == Usage(waiting_jobs=1, waiting_bytes=700)

        limit(database, max_bytes=1000)
        with database.write() as session:
            check_quota(session, TEAM, Wanted(1, 300))
            with pytest.raises(QuotaExceeded, match="700 bytes predicted"):
                check_quota(session, TEAM, Wanted(1, 301))

    def test_submissions_at_once_do_not_pass_together(self, database: Database) -> None:
        limit(database, max_jobs=3)

        def submit(name: str) -> None:
            manifest = parse_manifest({"checkpoints": [{"path": f"/models/{name}"}]})
            job = WantedJob(CheckpointEntry(path=f"/models/{name}"), BUILT_IN["cpu-int4"], name, f"{name}-int4")
            with database.write() as session:
                check_quota(session, TEAM, Wanted(1))
                assert insert_batch(session, manifest, [job], None)

        errors = at_once([lambda name=f"m{number}": submit(name) for number in range(6)])  # type: ignore[misc]

        assert [type(error) for error in errors] == [QuotaExceeded] * 3
        assert used(database).waiting_jobs == 3

    def test_a_team_without_a_quota_is_never_refused(self, database: Database) -> None:
        with database.write() as session:
            check_quota(session, TEAM, Wanted(10**6, 10**18))
        assert used(database) == Usage()


class TestPredictions:
    """What jobs are going to publish, from the sizes of files."""

    def jobs(self, *entries: CheckpointEntry) -> list[WantedJob]:
        return [WantedJob(entry, BUILT_IN["cpu-int4"], "a", "a-int4") for entry in entries]

    def test_weights_count_and_an_adapter_is_as_large_as_its_base(self, database: Database, tmp_path: Path) -> None:
        limit(database, max_bytes=10**9)
        base, adapter = tmp_path / "base", tmp_path / "adapter"
        for directory, size_bytes in ((base, 100_000), (adapter, 500)):
            directory.mkdir()
            (directory / "model.safetensors").write_bytes(bytes(size_bytes))
            (directory / "training.log").write_bytes(bytes(10**6))
        entries = [CheckpointEntry(path=str(base)), CheckpointEntry(path=str(adapter), base=str(base))]

        sizes = predicted_sizes(database, TEAM, self.jobs(*entries), [tmp_path])

        assert sizes == [45_000, 45_000]

    def test_a_gguf_file_counts_by_its_weights_and_a_broken_one_not_at_all(
        self, database: Database, tmp_path: Path
    ) -> None:
        limit(database, max_bytes=10**9)
        for name, content in (("sound", SOUND), ("broken", SOUND[:100])):
            (tmp_path / name).mkdir()
            (tmp_path / name / "model.gguf").write_bytes(content)
        jobs = self.jobs(*(CheckpointEntry(path=str(tmp_path / name)) for name in ("sound", "broken")))

        sizes = predicted_sizes(database, TEAM, jobs, [tmp_path])

        assert sizes == [round(0.45 * 2 * WEIGHTS), 0]

    def test_what_cannot_be_seen_from_here_counts_nothing(self, database: Database, tmp_path: Path) -> None:
        limit(database, max_bytes=10**9)
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside/model.safetensors").write_bytes(bytes(1000))
        (tmp_path / "root").mkdir()
        (tmp_path / "root/link").symlink_to(tmp_path / "outside")
        paths = [str(tmp_path / "outside"), str(tmp_path / "root/link"), str(tmp_path / "root/none"), "hf://org/name"]

        jobs = self.jobs(*(CheckpointEntry(path=path) for path in paths))

        assert predicted_sizes(database, TEAM, jobs, [tmp_path / "root"]) == [0, 0, 0, 0]

    def test_without_a_limit_of_bytes_nobody_looks(self, database: Database, tmp_path: Path) -> None:
        limit(database, max_versions=5)
        (tmp_path / "model.safetensors").write_bytes(bytes(1000))

        assert predicted_sizes(database, TEAM, self.jobs(CheckpointEntry(path=str(tmp_path))), [tmp_path]) == [0]


def test_a_quota_is_kept_and_changed(database: Database) -> None:
    with database.write() as session:
        set_quota(session, TEAM, Quota(max_bytes=5 * 10**13, max_versions=7))
        set_quota(session, "other", Quota(max_jobs=1))
        set_quota(session, TEAM, Quota(max_bytes=6 * 10**13))

    with database.read() as session:
        assert quota_of(session, TEAM) == Quota(max_bytes=6 * 10**13)
        assert quota_of(session, "other") == Quota(max_jobs=1)
        assert quota_of(session, "nobody").is_unlimited


def test_a_refusal_is_not_tried_again() -> None:
    assert issubclass(QuotaExceeded, PermanentError)


@on_both_databases
def test_a_batch_beyond_the_quota_is_refused_before_any_work_and_one_within_it_is_accepted(database: Database) -> None:
    limit(database, max_jobs=3)
    submit_paths(database, "/models/a", "/models/b")
    with pytest.raises(QuotaExceeded, match="2 jobs that are not over, and 2 more would pass its quota of 3"):
        submit_paths(database, "/models/c", "/models/d")
    submit_paths(database, "/models/c")
    assert used(database).waiting_jobs == 3

"""Damage of the store is told by the versions that it hurts, healed where it can be, and flagged where it cannot."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from olivepress import jobs, retention, store_check
from olivepress.cli import run
from olivepress.database import workers
from olivepress.database.cancelling import cancel_job
from olivepress.database.sessions import Database, DatabaseNow
from olivepress.database.tables import AliasRow, BatchRow, JobRow, StepRow, VersionRow, WorkerRow
from olivepress.errors import TransientError
from olivepress.jobs import JobState, StepKind
from olivepress.retention import Turn
from olivepress.steps import StepResult
from olivepress.store import DirectoryStore
from olivepress.store_check import Fate, HurtSource, HurtVersion, Report
from tests.integration.database_cases import (
    INGESTED,
    RESULTS,
    claimed,
    job_of,
    on_both_databases,
    step_of,
    succeed,
    worker_facts,
)
from tests.integration.press_cases import Press


@pytest.fixture
def press(database: Database, tmp_path: Path) -> Press:
    press = Press(database, tmp_path)
    with database.write() as session:
        workers.register(session, worker_facts())
    return press


@pytest.fixture
def job(press: Press) -> int:
    return press.job("/models/a")


def chunk_of(press: Press, digest: str, path: str) -> Path:
    return press.store.places.chunk(press.store.manifest(digest).file(path).chunks[0].sha256)


def flip(path: Path) -> None:
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def check(press: Press, **options: Any) -> Report:
    return store_check.check(press.database, press.store, **options)


def repair(press: Press, *others: DirectoryStore) -> Report:
    return store_check.repair(press.database, press.store, others)


def only_version(report: Report) -> HurtVersion:
    (hurt,) = report.versions
    return hurt


def flags(press: Press) -> dict[str, Any]:
    with press.database.read() as session:
        return session.scalars(select(VersionRow.flags)).one()


def backup(press: Press, root: Path) -> DirectoryStore:
    other = DirectoryStore(root / "backup")
    for digest in press.store.manifest_digests():
        press.store.materialise(digest, root / f"laid-out-{digest}")
        other.put_directory(root / f"laid-out-{digest}")
    return other


def run_repair_job(press: Press, repair_job: int, *, other_bytes: bool = False) -> None:
    """What a worker does with it: the same steps give the same bytes, or other ones."""
    for kind in (StepKind.INGEST, StepKind.CONVERT, StepKind.PACKAGE):
        if step_of(press.database, repair_job, kind).state == "succeeded":
            continue
        result = RESULTS[kind]
        if kind is StepKind.INGEST:
            result = StepResult(INGESTED | {"checkpoint_digest": "/models/a"})
        else:
            name = f"/models/{'other' if other_bytes else 'a'}-{kind}"
            result = replace(result, artifact_digest=press.put(name))
        held = claimed(press.database, repair_job, kind)
        assert succeed(press.database, held, result, has_artifact=press.store.has)


class TestTelling:
    def test_a_sound_store_hurts_nobody(self, press: Press, job: int) -> None:
        report = check(press)
        assert report.is_sound
        assert (report.versions, report.absent, report.steps, report.forgotten) == ([], [], [], 0)
        assert report.unreferenced.count == 0

    def test_a_version_is_named_with_its_aliases_and_files(self, press: Press, job: int) -> None:
        flip(chunk_of(press, press.digest(job, StepKind.PACKAGE), "model.onnx.data"))

        report = check(press)

        hurt = only_version(report)
        assert (hurt.version.name, hurt.version.aliases, hurt.fate) == ("a-int4:1", ("latest",), Fate.HURT)
        assert hurt.files == ("model.onnx.data",)
        assert not report.is_sound
        assert flags(press) == {}

    @pytest.mark.parametrize("kind", [StepKind.PACKAGE, StepKind.PUBLISH])
    def test_an_artifact_that_is_not_there_at_all_is_found_by_what_the_database_needs(
        self, press: Press, job: int, kind: StepKind
    ) -> None:
        digest = press.digest(job, kind)
        press.store.places.manifest(digest).unlink()

        report = check(press)

        assert report.absent == [digest]
        assert only_version(report).version.name == "a-int4:1"

    def test_a_job_that_is_not_over_is_named(self, press: Press, job: int) -> None:
        other = press.job("/models/b", last=StepKind.CONVERT)
        flip(chunk_of(press, press.digest(other, StepKind.CONVERT), "model.onnx.data"))

        report = check(press)

        assert [(each.job_id, each.kind) for each in report.steps] == [(other, "convert")]
        assert report.versions == []

    def test_a_result_that_only_memory_needs_is_a_miss_and_no_harm(self, press: Press, job: int) -> None:
        press.store.places.manifest(press.digest(job, StepKind.CONVERT)).unlink()
        report = check(press)
        assert (report.forgotten, report.absent, report.is_sound) == (1, [], True)

    def test_a_version_that_was_deleted_for_good_needs_nothing(self, press: Press, job: int) -> None:
        with press.database.write() as session:
            session.execute(update(VersionRow).values(deleted_at=1.0, files_until=2.0))
        press.store.places.manifest(press.digest(job, StepKind.PUBLISH)).unlink()
        report = check(press)
        assert (report.versions, report.is_sound) == ([], True)

    def test_what_is_unreferenced_is_told_and_is_no_error(self, press: Press, job: int) -> None:
        press.put("orphan")
        report = check(press)
        assert report.is_sound
        assert report.to_dict()["unreferenced"]["artifacts"]["count"] == 1


class TestHealing:
    def test_content_of_another_store_makes_the_version_whole(self, press: Press, job: int, tmp_path: Path) -> None:
        other = backup(press, tmp_path)
        flip(chunk_of(press, press.digest(job, StepKind.PACKAGE), "model.onnx.data"))
        press.store.places.manifest(press.digest(job, StepKind.PUBLISH)).unlink()

        report = repair(press, other)

        assert only_version(report).fate is Fate.WHOLE
        assert report.is_sound and check(press).is_sound
        press.store.materialise(press.digest(job, StepKind.PUBLISH), tmp_path / "target")
        assert flags(press) == {}

    @pytest.mark.parametrize("path", ["olivepress.json", "report.json", "SHA256SUMS"])
    def test_files_that_publishing_derives_are_written_again_from_what_the_database_knows(
        self, press: Press, job: int, tmp_path: Path, path: str
    ) -> None:
        chunk_of(press, press.digest(job, StepKind.PUBLISH), path).unlink()

        report = repair(press)

        assert only_version(report).fate is Fate.WHOLE
        press.store.materialise(press.digest(job, StepKind.PUBLISH), tmp_path / "target")

    def test_a_package_whose_manifest_is_lost_is_told_from_its_version(self, press: Press, job: int) -> None:
        press.store.places.manifest(press.digest(job, StepKind.PACKAGE)).unlink()
        assert only_version(repair(press)).fate is Fate.WHOLE
        assert press.store.has(press.digest(job, StepKind.PACKAGE))

    def test_a_file_that_only_publishing_writes_is_lost_and_the_version_is_flagged(
        self, press: Press, job: int
    ) -> None:
        flip(chunk_of(press, press.digest(job, StepKind.PUBLISH), "inference_model.json"))

        hurt = only_version(repair(press))

        assert hurt.fate is Fate.LOST
        assert "delete a-int4:1 and submit its checkpoint" in (hurt.note or "")
        assert "delete a-int4:1" in flags(press)["damaged"]["reason"]

    @pytest.mark.parametrize("kind", [StepKind.CONVERT, StepKind.REFERENCE])
    def test_what_only_memory_needs_is_taken_out_of_use_so_that_it_is_computed_again(
        self, press: Press, job: int, kind: StepKind
    ) -> None:
        digest = press.digest(job, kind)
        flip(chunk_of(press, digest, "model.onnx.data"))

        report = repair(press)

        assert (report.set_aside, report.forgotten, report.versions) == (1, 1, [])
        assert [each.versions for each in report.sources] == ([("a-int4:1",)] if kind is StepKind.REFERENCE else [])
        assert report.is_sound and check(press).is_sound
        assert not press.store.places.manifest(digest).exists()
        # and what puts it again has it whole
        assert press.put(f"/models/a-{kind}") == digest
        assert press.store.has(digest) and check(press).forgotten == 0

    def test_retention_and_a_repair_exclude_each_other(self, press: Press, job: int) -> None:
        flip(chunk_of(press, press.digest(job, StepKind.PACKAGE), "model.onnx.data"))
        turn = Turn(press.database, lambda: False, retention.LEASE)
        with pytest.raises(TransientError, match="retention runs already"):
            repair(press)
        assert press.store.places.quarantine.exists() and not list(press.store.places.quarantine.iterdir())
        turn.give_back()

        assert only_version(repair(press)).fate is Fate.QUEUED

    def test_two_checks_exclude_each_other(self, press: Press, job: int) -> None:
        turn = Turn(press.database, lambda: False, store_check.CHECK_LEASE)
        with pytest.raises(TransientError, match="store-check runs already"):
            check(press)
        turn.give_back()
        assert check(press).is_sound


class TestMakingAgain:
    @pytest.fixture
    def hurt(self, press: Press, job: int) -> HurtVersion:
        """The version after its weights were found damaged and nobody had them."""
        flip(chunk_of(press, press.digest(job, StepKind.PACKAGE), "model.onnx.data"))
        return only_version(repair(press))

    @on_both_databases
    def test_a_job_makes_the_same_bytes_again_and_publishes_nothing(
        self, press: Press, job: int, hurt: HurtVersion, tmp_path: Path
    ) -> None:
        # given a job that is queued, and the version flagged
        assert hurt.fate is Fate.QUEUED and hurt.job_id is not None
        assert flags(press).keys() == {"damaged"}
        # when
        run_repair_job(press, hurt.job_id)
        # then
        assert job_of(press.database, hurt.job_id).state == JobState.SUCCEEDED
        assert press.digest(hurt.job_id, StepKind.PACKAGE) == press.digest(job, StepKind.PACKAGE)
        after = check(press)
        assert after.is_sound
        assert only_version(after).fate is Fate.WHOLE
        assert flags(press) == {}
        press.store.materialise(press.digest(job, StepKind.PUBLISH), tmp_path / "target")
        with press.database.read() as session:
            assert len(session.scalars(select(VersionRow)).all()) == 1
            assert len(session.scalars(select(AliasRow)).all()) == 1

    def test_the_repair_job_has_only_pure_steps_and_its_own_batch(self, press: Press, hurt: HurtVersion) -> None:
        with press.database.read() as session:
            query = select(StepRow.kind, StepRow.state).where(StepRow.job_id == hurt.job_id).order_by(StepRow.position)
            rows = [tuple(row) for row in session.execute(query)]
            batch = session.scalars(select(BatchRow.name).join(JobRow).where(JobRow.id == hurt.job_id)).one()
        assert rows == [("ingest", "queued"), ("convert", "blocked"), ("package", "blocked")]
        assert batch == "repair of a-int4:1"

    def test_a_conversion_that_is_still_there_is_not_run_again(self, press: Press, hurt: HurtVersion) -> None:
        assert hurt.job_id is not None
        held = claimed(press.database, hurt.job_id, StepKind.INGEST)
        ingested = StepResult(INGESTED | {"checkpoint_digest": "/models/a"})
        assert succeed(press.database, held, ingested, has_artifact=press.store.has)
        assert step_of(press.database, hurt.job_id, StepKind.CONVERT).reused_step_id is not None
        assert step_of(press.database, hurt.job_id, StepKind.PACKAGE).state == "queued"

    def test_a_repair_that_is_under_way_is_not_queued_twice(self, press: Press, hurt: HurtVersion) -> None:
        again = only_version(repair(press))
        assert (again.fate, again.job_id) == (Fate.QUEUED, hurt.job_id)

    def test_a_repair_that_made_other_bytes_says_so(self, press: Press, hurt: HurtVersion) -> None:
        assert hurt.job_id is not None
        run_repair_job(press, hurt.job_id, other_bytes=True)
        after = only_version(repair(press))
        assert after.fate is Fate.LOST
        assert f"job {hurt.job_id} made it again, with other bytes" in (after.note or "")

    def test_a_repair_that_was_cancelled_is_queued_anew(self, press: Press, hurt: HurtVersion) -> None:
        with press.database.write() as session:
            cancel_job(session, hurt.job_id or 0)
        after = only_version(repair(press))
        assert after.fate is Fate.QUEUED and after.job_id != hurt.job_id


class TestAskingTheSourceAgain:
    """A version is measured again against what its source said, when the checkpoint may be gone."""

    @pytest.fixture
    def lost(self, press: Press, job: int) -> HurtSource:
        """What is said of the artifact after its chunk was found damaged and nobody had it."""
        flip(chunk_of(press, press.digest(job, StepKind.REFERENCE), "model.onnx.data"))
        (lost,) = repair(press).sources
        return lost

    @on_both_databases
    def test_a_job_asks_it_again_and_the_version_is_compared_with_it_as_before(
        self, press: Press, job: int, lost: HurtSource
    ) -> None:
        # given
        assert (lost.fate, lost.versions) == (Fate.QUEUED, ("a-int4:1",)) and lost.job_id is not None
        with press.database.read() as session:
            query = select(StepRow.kind).where(StepRow.job_id == lost.job_id).order_by(StepRow.position)
            assert session.scalars(query).all() == ["ingest", "reference"]
        # when
        for kind in (StepKind.INGEST, StepKind.REFERENCE):
            result = StepResult(INGESTED | {"checkpoint_digest": "/models/a"})
            if kind is StepKind.REFERENCE:
                result = replace(RESULTS[kind], artifact_digest=press.put(f"/models/a-{kind}"))
            held = claimed(press.database, lost.job_id, kind)
            assert succeed(press.database, held, result, has_artifact=press.store.has)
        # then
        assert job_of(press.database, lost.job_id).state == JobState.SUCCEEDED
        assert press.store.has(press.digest(job, StepKind.REFERENCE))
        assert check(press).sources == [] and flags(press) == {}

    def test_it_is_asked_once_for_all_versions_and_not_while_it_is_asked(
        self, press: Press, job: int, lost: HurtSource
    ) -> None:
        (again,) = repair(press).sources
        assert (again.fate, again.job_id) == (Fate.QUEUED, lost.job_id)

    def test_one_that_comes_back_from_a_copy_asks_nobody(self, press: Press, job: int, tmp_path: Path) -> None:
        other = backup(press, tmp_path)
        press.store.places.manifest(press.digest(job, StepKind.REFERENCE)).unlink()
        assert [each.fate for each in check(press).sources] == [Fate.HURT]

        (healed,) = repair(press, other).sources

        assert (healed.fate, healed.job_id) == (Fate.WHOLE, None)

    def test_one_whose_toolchain_is_gone_says_so(
        self, press: Press, job: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with press.database.write() as session:
            session.execute(update(WorkerRow).values(fingerprint="another"))
        flip(chunk_of(press, press.digest(job, StepKind.REFERENCE), "model.onnx.data"))
        monkeypatch.setenv("OLIVEPRESS_DATABASE_URL", press.database.url)
        monkeypatch.setenv("OLIVEPRESS_STORE_DIR", str(press.store.root))

        assert run(["store", "check", "--repair"]) == 0

        said = capsys.readouterr().err
        assert "what the source of a-int4:1 said is lost, and cannot be made again: the toolchain" in said


class TestHindrances:
    def hurt(self, press: Press, job: int) -> HurtVersion:
        flip(chunk_of(press, press.digest(job, StepKind.PACKAGE), "model.onnx.data"))
        return only_version(repair(press))

    @pytest.mark.parametrize(
        ("change", "fate", "text"),
        [
            ({"fingerprint": "another"}, Fate.LOST, "toolchain that made it (toolchain) is on no living worker"),
            ({"stopped_at": 1.0}, Fate.QUEUED, "no worker lives; it runs when one starts"),
            ({"stopped_at": 1.0, "fingerprint": "another"}, Fate.LOST, "is on no worker that is known"),
        ],
        ids=["another toolchain", "no worker", "a stopped worker of another toolchain"],
    )
    def test_a_toolchain_that_is_gone_is_named(
        self, press: Press, job: int, change: dict[str, Any], fate: Fate, text: str
    ) -> None:
        with press.database.write() as session:
            session.execute(update(WorkerRow).values(**change))
        hurt = self.hurt(press, job)
        assert hurt.fate is fate
        assert text in (hurt.note or "")

    def test_steps_that_work_otherwise_by_now_do_not_run(
        self, press: Press, job: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(jobs.STEP_VERSIONS, StepKind.PACKAGE, 999)
        hurt = self.hurt(press, job)
        assert hurt.fate is Fate.LOST and "a release of olivepress whose steps work otherwise" in (hurt.note or "")

    def test_what_was_not_made_here_is_to_be_imported_again(self, press: Press, job: int) -> None:
        with press.database.write() as session:
            session.execute(update(VersionRow).values(job_id=None))
        hurt = self.hurt(press, job)
        assert hurt.fate is Fate.LOST and "import a-int4:1 again" in (hurt.note or "")


class TestCommand:
    @pytest.fixture
    def shell(self, press: Press, job: int, monkeypatch: pytest.MonkeyPatch) -> Press:
        """A press whose database and store the command finds by its settings."""
        monkeypatch.setenv("OLIVEPRESS_DATABASE_URL", press.database.url)
        monkeypatch.setenv("OLIVEPRESS_STORE_DIR", str(press.store.root))
        return press

    def test_a_sound_store_ends_with_0_and_says_what_was_read(
        self, shell: Press, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["store", "check"]) == 0
        assert "sound: 4 artifacts and " in capsys.readouterr().out

    def test_damage_ends_with_1_until_it_is_healed(
        self, shell: Press, job: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        # given
        other = backup(shell, tmp_path)
        flip(chunk_of(shell, shell.digest(job, StepKind.PACKAGE), "model.onnx.data"))
        # when, then
        assert run(["store", "check", "--fast"]) == 0
        assert run(["store", "check"]) == 1
        shown = capsys.readouterr()
        assert "a-int4:1" in shown.out and "not sound" in shown.out and "--repair heals" in shown.err
        # when, then
        assert run(["store", "check", "--repair", "--from", str(other.root), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [each["fate"] for each in found["versions"]] == ["whole"]
        assert found["damage"][0]["outcome"] == "healed" and found["quarantined"] == 1
        assert run(["store", "check"]) == 0

    def test_what_is_queued_is_told_with_its_job(
        self, shell: Press, job: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        flip(chunk_of(shell, shell.digest(job, StepKind.PACKAGE), "model.onnx.data"))
        assert run(["store", "check", "--repair"]) == 1
        assert "makes it again" in capsys.readouterr().out

    def test_a_database_that_is_not_there_is_said_before_a_store_is_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("OLIVEPRESS_DATABASE_URL", f"sqlite:///{tmp_path / 'empty.sqlite'}")
        monkeypatch.setenv("OLIVEPRESS_STORE_DIR", str(tmp_path / "no-store"))
        for command in (["check"], ["move", "--to", str(tmp_path / "target")]):
            assert run(["store", *command]) == 3
            assert "schema" in capsys.readouterr().err
        assert not (tmp_path / "no-store").exists() and not (tmp_path / "target").exists()

    def test_a_place_without_a_store_is_refused(
        self, shell: Press, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["store", "check", "--from", str(tmp_path / "nowhere")]) == 4
        assert "holds no store" in capsys.readouterr().err
        assert not (tmp_path / "nowhere").exists()
        assert run(["store", "check", "--from", "http://bucket"]) == 2


class TestMoving:
    @pytest.fixture
    def shell(self, press: Press, job: int, monkeypatch: pytest.MonkeyPatch) -> Press:
        monkeypatch.setenv("OLIVEPRESS_DATABASE_URL", press.database.url)
        monkeypatch.setenv("OLIVEPRESS_STORE_DIR", str(press.store.root))
        return press

    def test_a_store_moves_when_nobody_writes_and_says_how_to_go_over(
        self, shell: Press, job: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        target = tmp_path / "elsewhere" / "store"
        assert run(["store", "move", "--to", str(target)]) == 1
        assert "a worker may write" in capsys.readouterr().err
        assert run(["store", "move", "--to", str(target), "--while-running"]) == 0
        assert "run this again" in capsys.readouterr().err
        with shell.database.write() as session:
            session.execute(update(WorkerRow).values(stopped_at=DatabaseNow()))
        press_more = shell.put("more")
        assert run(["store", "move", "--to", str(target), "--verify", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["artifacts"], found["new_artifacts"], found["copied"]["count"]) == (5, 1, 1)
        assert found["complete"] and found["verified_bytes"] > 0
        assert run(["store", "move", "--to", str(target)]) == 0
        assert f"OLIVEPRESS_STORE_DIR={target} and no OLIVEPRESS_STORE_URL" in capsys.readouterr().err
        moved = DirectoryStore(target)
        for digest in (press_more, shell.digest(job, StepKind.PUBLISH)):
            assert moved.has(digest) and shell.store.has(digest)

    @pytest.mark.parametrize("place", ["", "below"])
    def test_a_store_is_not_moved_into_itself(
        self, shell: Press, capsys: pytest.CaptureFixture[str], place: str
    ) -> None:
        assert run(["store", "move", "--to", str(shell.store.root / place), "--while-running"]) == 1
        assert "is the store that is to be moved" in capsys.readouterr().err
        assert not (shell.store.root / "below").exists()

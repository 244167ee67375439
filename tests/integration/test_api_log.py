"""Logs that are followed: in the database, over HTTP, and on the command line."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api import followed_log
from olivepress.cli import run
from olivepress.client import Client
from olivepress.database import attempt_logs, steps
from olivepress.database.attempt_logs import LogFollower, Noted
from olivepress.database.cancelling import cancel_job
from olivepress.database.sessions import Database
from olivepress.database.steps import Claim, Ending
from olivepress.errors import NotFound, ServiceUnavailable
from olivepress.jobs import AttemptOutcome, StepKind
from tests.integration.api_cases import KEY, Api, api_over, served
from tests.integration.database_cases import claimed, on_both_databases, submit_paths

ENDED = Ending(AttemptOutcome.FAILED, error_class="X", error_message="it broke")


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed_log, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(followed_log, "COMMENT_EVERY_S", 0.1)


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[Api]:
    with api_over(database, tmp_path) as api:
        yield api


@pytest.fixture
def url(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where the API answers; the command line finds it too."""
    with served(api.app) as url:
        monkeypatch.setenv("OLIVEPRESS_URL", url)
        monkeypatch.setenv("OLIVEPRESS_API_KEY", KEY)
        yield url


def printed(database: Database, held: Claim, last: int, kept: int = 200) -> None:
    """The attempt has printed this many lines, and its row holds the last of them."""
    lines = [f"line {number}" for number in range(max(1, last - kept + 1), last + 1)]
    with database.write() as session:
        attempt_logs.note(session, held, Noted("\n".join(lines), last))


def end(database: Database, held: Claim, *, may_retry: bool = False) -> None:
    with database.write() as session:
        assert steps.fail(session, held, ENDED, may_retry=may_retry)


def look(database: Database, follower: LogFollower) -> list[Any]:
    """What is new, in short."""
    with database.read() as session:
        events = follower.look(session)
    short = {"lines": lambda e: (e["first_line"], e["skipped"], len(e["lines"]), e["lines"][-1:])}
    return [(e["event"], *short.get(e["event"], lambda e: (e.get("step"), e.get("outcome")))(e)) for e in events]


@on_both_databases
def test_each_look_gives_what_is_new_and_says_what_was_missed(database: Database) -> None:
    (job_id,) = submit_paths(database, "/models/a")
    follower = LogFollower(job_id)
    assert look(database, follower) == []
    held = claimed(database, job_id, StepKind.INGEST)
    assert look(database, follower) == [("attempt", "ingest", None)]
    printed(database, held, 3)
    assert look(database, follower) == [("lines", 1, 0, 3, ["line 3"])]
    assert look(database, follower) == []
    printed(database, held, 5)
    assert look(database, follower) == [("lines", 4, 0, 2, ["line 5"])]
    printed(database, held, 717)
    assert look(database, follower) == [("lines", 518, 512, 200, ["line 717"])]
    end(database, held)
    assert look(database, follower) == [("ended", "ingest", "failed"), ("over", None, None)]
    assert follower.is_over


@on_both_databases
def test_who_comes_late_sees_the_ends_of_all_attempts(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("olivepress.jobs.RETRY_BASE_S", 0.0)
    (job_id,) = submit_paths(database, "/models/a")
    for number in (300, 1):
        held = claimed(database, job_id, StepKind.INGEST)
        printed(database, held, number)
        end(database, held, may_retry=number == 300)
    follower = LogFollower(job_id)
    assert look(database, follower) == [
        ("attempt", "ingest", None),
        ("lines", 101, 100, 200, ["line 300"]),
        ("ended", "ingest", "failed"),
        ("attempt", "ingest", None),
        ("lines", 1, 0, 1, ["line 1"]),
        ("ended", "ingest", "failed"),
        ("over", None, None),
    ]


def test_one_step_is_over_when_it_is_and_others_are_not_shown(database: Database) -> None:
    (job_id,) = submit_paths(database, "/models/a")
    held = claimed(database, job_id, StepKind.INGEST)
    printed(database, held, 1)
    follower = LogFollower(job_id, StepKind.CONVERT)
    assert look(database, follower) == []
    with database.write() as session:
        cancel_job(session, job_id)
    assert look(database, follower) == [("over", None, None)]


def test_a_job_that_does_not_exist_is_not_followed(database: Database) -> None:
    with pytest.raises(NotFound, match="no job 9"):
        look(database, LogFollower(9))


class TestOverHttp:
    def test_the_events_come_while_the_step_runs_and_end_with_the_job(self, api: Api, url: str) -> None:
        (job_id,) = api.submit("/models/a")["jobs"]
        held = claimed(api.database, job_id, StepKind.INGEST)
        printed(api.database, held, 2)
        with Client(url, KEY) as client:
            events = client.follow_log(job_id)
            assert [next(events)["event"], next(events)["lines"]] == ["attempt", ["line 1", "line 2"]]
            printed(api.database, held, 3)
            assert next(events)["lines"] == ["line 3"]
            end(api.database, held)
            assert [event["event"] for event in events] == ["ended", "over"]

    def test_a_quiet_log_sends_comments(self, api: Api, url: str) -> None:
        import httpx

        (job_id,) = api.submit("/models/a")["jobs"]
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.stream("GET", f"{url}/v1/jobs/{job_id}/log", params={"follow": True}, headers=headers) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert next(answer.iter_text()) == followed_log.COMMENT

    def test_an_outage_of_the_database_does_not_end_it(
        self, api: Api, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (job_id,) = api.submit("/models/a")["jobs"]
        failures = iter([True, True, False])
        real, met = LogFollower.look, threading.Event()

        def look(self: LogFollower, session: Any) -> Any:
            if met.is_set() and next(failures, False):
                raise ServiceUnavailable("the database does not answer")
            met.set()
            return real(self, session)

        monkeypatch.setattr(LogFollower, "look", look)
        with Client(url, KEY) as client:
            events = client.follow_log(job_id)
            threading.Timer(0.3, lambda: end(api.database, claimed(api.database, job_id, StepKind.INGEST))).start()
            assert [event["event"] for event in events] == ["attempt", "ended", "over"]
        assert next(failures, None) is None

    def test_a_wrong_job_is_an_error_and_not_a_stream(self, api: Api, url: str) -> None:
        with Client(url, KEY) as client, pytest.raises(NotFound):
            next(client.follow_log(99))


class TestCommand:
    def a_failed_job(self, api: Api) -> int:
        (job_id,) = api.submit("/models/a")["jobs"]
        held = claimed(api.database, job_id, StepKind.INGEST)
        printed(api.database, held, 512)
        end(api.database, held)
        return int(job_id)

    @pytest.mark.parametrize("options", [[], ["--follow"], ["-f", "--step", "ingest"]])
    def test_it_prints_lines_and_says_how_many_are_missing(
        self, api: Api, url: str, capsys: Any, options: list[str]
    ) -> None:
        assert run(["log", str(self.a_failed_job(api)), *options]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[:3] == ["--- ingest, attempt 1, on worker-1", "… 312 lines skipped", "line 313"]
        assert lines[-2] == "line 512"
        assert lines[-1].startswith("--- ingest, attempt 1: failed")

    def test_json_is_a_line_an_event(self, api: Api, url: str, capsys: Any) -> None:
        assert run(["log", str(self.a_failed_job(api)), "--follow", "--json"]) == 0
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [event["event"] for event in events] == ["attempt", "lines", "ended", "over"]
        assert (events[1]["first_line"], events[1]["skipped"], events[3]["state"]) == (313, 312, "failed")

    def test_json_without_follow_is_one_document(self, api: Api, url: str, capsys: Any) -> None:
        assert run(["log", str(self.a_failed_job(api)), "--json"]) == 0
        (part,) = json.loads(capsys.readouterr().out)
        assert (part["log_lines"], part["outcome"]) == (512, "failed")

    def test_ctrl_c_ends_it_quietly(self, api: Api, url: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(self: Client, job_id: int, step: str | None = None) -> Iterator[Any]:
            yield {"event": "attempt", "step": "ingest", "attempt": 1, "worker_id": "w"}
            raise KeyboardInterrupt

        monkeypatch.setattr(Client, "follow_log", interrupted)
        assert run(["log", "1", "--follow"]) == 130
        assert capsys.readouterr() == ("--- ingest, attempt 1, on w\n", "")

"""Reports over HTTP: the document, the page, the schema."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from olivepress.database.sessions import Database
from olivepress.reports.document import schema
from tests.integration.api_cases import REPORT, Api, api_over, publish_job

PLACE = "/v1/models/m-int4/versions/latest"


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[Api]:
    with api_over(database, tmp_path) as api:
        (job,) = api.submit("/models/m")["jobs"]
        publish_job(api, job)
        yield api


def test_the_document_names_the_version_and_holds_its_report(api: Api) -> None:
    found = api.get(f"{PLACE}/report")

    assert (found["version"], found["recipe"], found["verdict"]) == ("m-int4:1", "cpu-int4", "passed")
    assert found["report"] == REPORT
    assert found == api.get("/v1/models/m-int4/versions/1/report")


def test_the_page_is_html_that_says_what_was_measured(api: Api) -> None:
    answer = api.http.get(f"{PLACE}/report.html")

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "m-int4:1" in answer.text and "3.54 MB" in answer.text


def test_the_schema_is_published(api: Api) -> None:
    assert api.get("/v1/reports/schema") == schema()


@pytest.mark.parametrize("what", ["report", "report.html"])
def test_a_version_that_there_is_not_has_no_report(api: Api, what: str) -> None:
    answer = api.http.get(f"/v1/models/m-int4/versions/7/{what}")

    assert (answer.status_code, answer.json()["error_class"]) == (404, "NotFound")


@pytest.mark.parametrize("what", ["report", "report.html"])
def test_reports_are_not_shown_without_the_key_or_to_another_team(api: Api, what: str) -> None:
    assert api.http.get(f"{PLACE}/{what}", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert api.http.get(f"{PLACE}/{what}", params={"team": "legal"}).status_code == 404

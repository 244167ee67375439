"""A signed version on its way to a user: pulled, installed, exported, imported, verified there; a forged one is not."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from olivepress.cli import run
from olivepress.client import Client
from olivepress.database.sessions import Database
from olivepress.database.signing_keys import note
from olivepress.database.versions import Publication, publish_version
from olivepress.evidence.known_keys import KnownKeys
from olivepress.evidence.signing import SigningKey
from olivepress.jobs import digest_of
from tests.integration.api_cases import KEY, Api, api_over, served
from tests.integration.publication_cases import Publisher

MODEL = "support-int4"
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[Api]:
    with api_over(database, tmp_path / "stack") as api:
        yield api


@pytest.fixture
def publisher(api: Api, tmp_path: Path) -> Publisher:
    """Publishes the first version, signed."""
    key_file = tmp_path / "signing-key.pem"
    SigningKey.load_or_create(key_file)
    publisher = Publisher(api.database, tmp_path / "stack", key_file)
    publisher.store = api.store
    publisher.publish(b"1")
    return publisher


@pytest.fixture
def url(api: Api, publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the stack, which the command line uses."""
    with served(api.app) as url:
        monkeypatch.setenv("OLIVEPRESS_URL", url)
        monkeypatch.setenv("OLIVEPRESS_API_KEY", KEY)
        yield url


def key_of(publisher: Publisher) -> SigningKey:
    assert publisher.key_file is not None
    return SigningKey.load(publisher.key_file)


def verdict(capsys: Captured, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and document of `olivepress verify`."""
    capsys.readouterr()
    code = run(["verify", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def replace_key(publisher: Publisher) -> str:
    """A new key that nobody handed over to; its id."""
    assert publisher.key_file is not None
    publisher.key_file.unlink()
    return SigningKey.load_or_create(publisher.key_file).public.id


class TestPull:
    """`olivepress pull` and `olivepress verify`."""

    def test_a_pulled_version_is_verified_offline(self, url: str, tmp_path: Path, capsys: Captured) -> None:
        assert run(["pull", MODEL, "--to", str(tmp_path / "out")]) == 0
        assert f"{url} signs with the key" in capsys.readouterr().err

        assert run(["verify", str(tmp_path / "out")]) == 0
        assert f"{MODEL}:1 of team default: verified, by the key of {url}" in capsys.readouterr().out
        code, document = verdict(capsys, str(tmp_path / "out"))

        assert code == 0
        assert document["is_verified"]
        assert document["version"] == f"{MODEL}:1"
        assert document["key_known_for"] == url

    def test_what_is_changed_afterwards_is_told_on_the_terminal(
        self, url: str, tmp_path: Path, capsys: Captured
    ) -> None:
        run(["pull", MODEL, "--to", str(tmp_path / "out")])
        (tmp_path / "out/tokenizer/merges.txt").write_text("b a\n")
        (tmp_path / "out/more.bin").touch()
        capsys.readouterr()

        assert run(["verify", str(tmp_path / "out")]) == 1

        shown = capsys.readouterr().out
        assert "NOT VERIFIED" in shown
        assert "tokenizer/merges.txt is not what SHA256SUMS says" in shown
        assert "more.bin was added" in shown

    def test_a_changed_key_ends_the_pull_before_anything_is_there(
        self, url: str, publisher: Publisher, tmp_path: Path, capsys: Captured
    ) -> None:
        run(["pull", MODEL, "--to", str(tmp_path / "first")])
        new_id = replace_key(publisher)
        publisher.publish(b"2")
        capsys.readouterr()

        assert run(["pull", MODEL, "--to", str(tmp_path / "second")]) == 5

        assert f"THE KEY OF {url} HAS CHANGED" in capsys.readouterr().err
        assert not [path for path in tmp_path.iterdir() if "second" in path.name]
        assert run(["keys", "trust", new_id]) == 0
        assert run(["pull", MODEL, "--to", str(tmp_path / "second")]) == 0
        assert verdict(capsys, str(tmp_path / "second"))[0] == 0

    def test_a_version_whose_files_were_exchanged_in_the_store_is_refused(
        self, url: str, api: Api, publisher: Publisher, tmp_path: Path, capsys: Captured
    ) -> None:
        """Somebody who has the store and the database, and not the key."""
        good = _artifact(api)
        forged = api.store.extend(api.store.manifest(good), {"genai_config.json": b'{"model": "worse"}'})
        with api.database.write() as session:
            values = {"job_id": None, "team": "default", "model_name": MODEL, "alias": "latest"}
            rest = {"package_digest": "f" * 64, "recipe_name": "cpu-int4", "precision": "int4", "family": "qwen2"}
            wanted = Publication(**values, **rest, report={"gates": []}, provenance={})  # type: ignore[arg-type]
            publish_version(session, wanted, lambda number: (forged.digest, forged.size_bytes))

        assert run(["pull", MODEL, "--to", str(tmp_path / "out")]) == 1

        error = capsys.readouterr().err
        assert "is not what its publisher signed" in error
        assert "genai_config.json is not what" in error
        assert not (tmp_path / "out").exists()

    def test_an_old_version_is_not_accepted_under_a_new_number(
        self, url: str, api: Api, tmp_path: Path, capsys: Captured
    ) -> None:
        artifact = _artifact(api)
        with api.database.write() as session:
            values = {"job_id": None, "team": "default", "model_name": MODEL, "alias": "latest"}
            rest = {"package_digest": "f" * 64, "recipe_name": "cpu-int4", "precision": "int4", "family": "qwen2"}
            wanted = Publication(**values, **rest, report={"gates": []}, provenance={})  # type: ignore[arg-type]
            publish_version(session, wanted, lambda number: (artifact, 1))

        assert run(["pull", MODEL, "--to", str(tmp_path / "out")]) == 1
        assert f"was signed as {MODEL}:1" in capsys.readouterr().err

    def test_the_publishers_key_alone_counts_when_it_is_given(
        self, url: str, publisher: Publisher, tmp_path: Path, capsys: Captured
    ) -> None:
        run(["pull", MODEL, "--to", str(tmp_path / "out")])
        capsys.readouterr()
        assert run(["keys", "show", "--pem"]) == 0
        (tmp_path / "publisher.pem").write_text(capsys.readouterr().out)
        other = SigningKey.load_or_create(tmp_path / "other.pem").public
        (tmp_path / "other-public.pem").write_text(other.pem)

        assert verdict(capsys, str(tmp_path / "out"), "--key", str(tmp_path / "publisher.pem"))[0] == 0
        assert verdict(capsys, str(tmp_path / "out"), "--key", str(tmp_path / "other-public.pem"))[0] == 5

    def test_a_machine_that_knows_no_key_says_so_or_asks_the_stack(
        self, url: str, tmp_path: Path, capsys: Captured
    ) -> None:
        run(["pull", MODEL, "--to", str(tmp_path / "out")])
        KnownKeys.default().file.unlink()

        assert verdict(capsys, str(tmp_path / "out"))[0] == 5
        assert verdict(capsys, str(tmp_path / "out"), "--stack")[0] == 0
        assert verdict(capsys, str(tmp_path / "out"))[0] == 0

    def test_wrong_usage_has_its_exit_codes(self, tmp_path: Path, capsys: Captured) -> None:
        (tmp_path / "text.pem").write_text("no key")

        assert run(["verify", str(tmp_path / "none")]) == 4
        assert run(["verify", str(tmp_path), "--stack", "--key", str(tmp_path / "text.pem")]) == 2
        assert run(["verify", str(tmp_path), "--key", str(tmp_path / "text.pem")]) == 1
        assert run(["verify", str(tmp_path / "text.pem")]) == 1
        assert "does not begin as a tar does" in capsys.readouterr().err


def test_what_a_distrusted_key_signed_is_neither_pulled_nor_verified(
    url: str, publisher: Publisher, tmp_path: Path, capsys: Captured
) -> None:
    assert run(["pull", MODEL, "--to", str(tmp_path / "before")]) == 0
    assert publisher.key_file is not None
    key_id = SigningKey.load(publisher.key_file).public.id

    assert run(["keys", "distrust", key_id]) == 0

    assert verdict(capsys, str(tmp_path / "before"))[0] == 5
    assert run(["verify", str(tmp_path / "before")]) == 5
    assert "told to distrust that key" in capsys.readouterr().err
    assert run(["pull", MODEL, "--to", str(tmp_path / "after")]) == 5
    assert not (tmp_path / "after").exists()
    assert run(["keys", "show"]) == 0
    assert "distrusted" in capsys.readouterr().out


class TestInstall:
    """`olivepress install`, `export` and `import`."""

    def test_an_installed_version_is_verified_where_it_lies(self, url: str, tmp_path: Path, capsys: Captured) -> None:
        assert run(["install", MODEL, "--foundry-cache", str(tmp_path / "cache")]) == 0

        assert verdict(capsys, str(tmp_path / f"cache/olivepress/{MODEL}-1"))[0] == 0

    def test_evidence_that_was_lost_or_changed_is_installed_again(
        self, url: str, tmp_path: Path, capsys: Captured
    ) -> None:
        install = ["install", MODEL, "--foundry-cache", str(tmp_path / "cache")]
        run(install)
        installed = tmp_path / f"cache/olivepress/{MODEL}-1"
        for damage in (installed / "evidence.sig").unlink, lambda: (installed / "evidence.json").write_bytes(b"{}"):
            damage()
            assert verdict(capsys, str(installed))[0] == 1
            assert run(install) == 0
            assert verdict(capsys, str(installed))[0] == 0

    def test_a_changed_key_ends_the_installation(
        self, url: str, publisher: Publisher, tmp_path: Path, capsys: Captured
    ) -> None:
        run(["install", MODEL, "--foundry-cache", str(tmp_path / "cache")])
        replace_key(publisher)
        publisher.publish(b"2")

        assert run(["install", MODEL, "--foundry-cache", str(tmp_path / "cache")]) == 5
        assert not (tmp_path / f"cache/olivepress/{MODEL}-2").exists()

    def test_an_archive_is_verified_and_imported(self, url: str, tmp_path: Path, capsys: Captured) -> None:
        archive, target = str(tmp_path / "support.tar"), str(tmp_path / "out")
        assert run(["export", MODEL, archive]) == 0
        capsys.readouterr()

        # Another machine, which knows nothing of the stack.
        assert run(["import", archive, "--to", target]) == 0
        assert "which this machine does not know" in capsys.readouterr().err
        shutil.rmtree(target)
        assert verdict(capsys, archive, "--stack")[0] == 0
        assert run(["import", archive, "--to", target]) == 0
        assert "does not know" not in capsys.readouterr().err
        assert verdict(capsys, target)[0] == 0
        assert verdict(capsys, archive)[0] == 0

    def test_an_archive_of_a_forged_version_is_not_imported_where_the_key_is_known(
        self, url: str, api: Api, publisher: Publisher, tmp_path: Path, capsys: Captured
    ) -> None:
        assert run(["pull", MODEL, "--to", str(tmp_path / "known")]) == 0
        with api.database.write() as session:
            values = {"job_id": None, "team": "default", "model_name": "forged", "alias": "latest"}
            rest = {"package_digest": digest_of("x"), "recipe_name": "r", "precision": "int4", "family": "qwen2"}
            wanted = Publication(**values, **rest, report={"gates": []}, provenance={})  # type: ignore[arg-type]
            files = api.store.extend(api.store.manifest(_artifact(api)), {"genai_config.json": b"{}"})
            publish_version(session, wanted, lambda number: (files.digest, files.size_bytes))
        assert run(["export", "forged", str(tmp_path / "forged.tar")]) == 0

        assert run(["import", str(tmp_path / "forged.tar"), "--to", str(tmp_path / "out")]) == 1

        assert "is not what its publisher signed" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


class TestRoutes:
    """GET /v1/keys, and quotas."""

    def test_the_api_tells_every_key_with_its_handing_over(
        self, api: Api, publisher: Publisher, tmp_path: Path
    ) -> None:
        old, new = key_of(publisher), SigningKey.load_or_create(tmp_path / "new.pem")
        with api.database.write() as session:
            note(session, new.public, old.public, old.endorse(new.public))

        newest, oldest = api.get("/v1/keys")

        assert (newest["id"], newest["endorsed_by"]) == (new.public.id, old.public.id)
        assert oldest["public_key"] == old.public.text
        assert "PRIVATE" not in json.dumps([newest, oldest])

    def test_a_quota_is_set_part_by_part_and_lifted(self, api: Api, publisher: Publisher) -> None:
        place = "/v1/quotas/default"
        assert api.get("/v1/quotas") == []
        assert api.get(place)["used"]["versions"] == 1

        assert api.http.patch(place, json={"max_bytes": 50_000_000_000, "max_versions": 200}).status_code == 200
        assert api.http.patch(place, json={"max_versions": None, "max_jobs": 5}).status_code == 200

        found = api.get(place)
        limits = (found["max_bytes"], found["max_versions"], found["max_jobs"])
        assert limits == (50_000_000_000, None, 5)
        assert [entry["team"] for entry in api.get("/v1/quotas")] == ["default"]

    @pytest.mark.parametrize("change", [{"max_bytes": -1}, {"max_bytes": 1.5}, {"max_bites": 1}, {"max_jobs": 2**40}])
    def test_a_limit_that_cannot_be_is_refused(self, api: Api, change: dict[str, Any]) -> None:
        answer = api.http.patch("/v1/quotas/default", json=change)

        assert answer.status_code == 422
        assert api.get("/v1/quotas") == []

    def test_the_command_line_shows_and_sets_quotas(self, url: str, capsys: Captured) -> None:
        assert run(["quotas", "set", "default", "--bytes", "50G", "--versions", "200"]) == 0
        assert run(["quotas", "set", "default", "--versions", "none", "--json"]) == 0
        capsys.readouterr()
        assert run(["quotas", "show"]) == 0

        shown = capsys.readouterr().out
        assert "50.0 GB" in shown
        for wrong in (["--bytes", "many"], ["--versions", "-1"], ["--jobs", "1.5"], []):
            assert run(["quotas", "set", "default", *wrong]) == 2

    def test_the_client_has_the_same_words(self, url: str) -> None:
        with Client(url, KEY) as client:
            assert client.set_quota("default", {"max_jobs": 3})["max_jobs"] == 3
            assert client.quota()["max_jobs"] == 3
            assert [entry["team"] for entry in client.quotas()] == ["default"]
            assert len(client.signing_keys()) == 1


def _artifact(api: Api) -> str:
    digest: str = api.get(f"/v1/models/{MODEL}/versions/1")["artifact_digest"]
    return digest

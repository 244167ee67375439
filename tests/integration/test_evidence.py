"""What is published is signed by the key of those who publish, and by nobody else."""

from pathlib import Path

import pytest

from olivepress.cli import run
from olivepress.database import signing_keys
from olivepress.database.sessions import Database
from olivepress.errors import TransientError
from olivepress.evidence.document import EVIDENCE_FILE, SIGNATURE_FILE, Evidence
from olivepress.evidence.signing import PublicKey, SigningKey
from olivepress.evidence.verification import Verification, directory_content, verify
from olivepress.jobs import digest_of
from tests.integration.database_cases import on_both_databases
from tests.integration.publication_cases import REPORT, Publisher


@pytest.fixture
def publisher(database: Database, tmp_path: Path) -> Publisher:
    key_file = tmp_path / "signing-key.pem"
    SigningKey.load_or_create(key_file)
    return Publisher(database, tmp_path, key_file)


def keys_of(database: Database) -> dict[str, PublicKey]:
    with database.read() as session:
        return {entry["id"]: PublicKey.from_text(entry["public_key"]) for entry in signing_keys.keys(session)}


def verified(publisher: Publisher, artifact_digest: str) -> Verification:
    target = publisher.root / f"out-{artifact_digest[:8]}"
    publisher.store.materialise(artifact_digest, target)
    return verify(directory_content(target), keys_of(publisher.database).get)


@on_both_databases
def test_a_published_version_is_verified_with_the_key_that_the_database_knows(publisher: Publisher) -> None:
    published = publisher.publish(name="support")

    found = verified(publisher, published.artifact_digest)

    assert found.is_verified, found.complaints
    assert found.evidence is not None
    assert found.evidence.version == "support-int4:1"
    assert found.evidence.team == "default"
    assert found.evidence.report_digest == digest_of(REPORT)


def test_the_evidence_lists_every_other_file_of_the_version(publisher: Publisher) -> None:
    published = publisher.publish()
    manifest = publisher.store.manifest(published.artifact_digest)
    content = b"".join(publisher.store.open_file(published.artifact_digest, EVIDENCE_FILE))

    listed = Evidence.parse(content).files

    files = {file.path: file.sha256 for file in manifest.files if file.path not in (EVIDENCE_FILE, SIGNATURE_FILE)}
    assert listed == files
    assert {"inference_model.json", "olivepress.json", "report.json", "SHA256SUMS"} <= set(listed)


def test_the_package_itself_holds_nothing_of_the_signature(publisher: Publisher) -> None:
    signed, unsigned = publisher.publish(name="a"), Publisher(publisher.database, publisher.root)
    package = publisher.package()

    assert publisher.package() == package
    names = {file.path for file in publisher.store.manifest(package).files}
    assert not names & {EVIDENCE_FILE, SIGNATURE_FILE, "report.json"}
    assert signed.is_new
    assert unsigned.package() == package


def test_the_same_content_again_gives_the_version_with_its_first_signature(publisher: Publisher) -> None:
    first = publisher.publish()
    publisher.key_file = publisher.root / "other.pem"
    SigningKey.load_or_create(publisher.key_file)

    again = publisher.publish()

    assert not again.is_new
    assert again.artifact_digest == first.artifact_digest


def test_a_worker_without_the_key_does_not_publish_unsigned_where_others_sign(publisher: Publisher) -> None:
    publisher.publish(b"1")
    publisher.key_file = None

    with pytest.raises(TransientError, match="OLIVEPRESS_SIGNING_KEY_FILE"):
        publisher.publish(b"2")


def test_a_stack_without_any_key_publishes_unsigned(database: Database, tmp_path: Path) -> None:
    publisher = Publisher(database, tmp_path)

    found = verified(publisher, publisher.publish().artifact_digest)

    assert found.is_unsigned


def test_nothing_is_published_with_a_key_that_others_can_read(publisher: Publisher) -> None:
    assert publisher.key_file is not None
    publisher.key_file.chmod(0o644)

    # Another worker may have a better one.
    with pytest.raises(TransientError, match="others can read"):
        publisher.publish()
    assert keys_of(publisher.database) == {}


class TestRotation:
    """`olivepress keys rotate`."""

    @pytest.fixture(autouse=True)
    def _environment(self, publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OLIVEPRESS_DATABASE_URL", publisher.database.url)
        monkeypatch.setenv("OLIVEPRESS_SIGNING_KEY_FILE", str(publisher.key_file))

    def test_the_next_publication_is_signed_by_a_key_to_which_the_old_one_handed_over(
        self, publisher: Publisher
    ) -> None:
        assert publisher.key_file is not None
        old = SigningKey.load(publisher.key_file)
        first = publisher.publish(b"1")

        assert run(["keys", "rotate"]) == 0
        second = publisher.publish(b"2")

        new = SigningKey.load(publisher.key_file)
        assert new.public != old.public
        assert verified(publisher, first.artifact_digest).is_verified
        found = verified(publisher, second.artifact_digest)
        assert found.is_verified
        assert found.evidence is not None
        assert found.evidence.key_id == new.public.id
        with publisher.database.read() as session:
            newest, oldest = signing_keys.keys(session)
        assert (newest["id"], newest["endorsed_by"], oldest["endorsed_by"]) == (new.public.id, old.public.id, None)

    def test_the_new_file_is_for_its_owner_only_and_the_old_key_is_gone(self, publisher: Publisher) -> None:
        assert publisher.key_file is not None
        before = publisher.key_file.read_bytes()

        assert run(["keys", "rotate", "--json"]) == 0

        assert publisher.key_file.read_bytes() != before
        assert publisher.key_file.stat().st_mode & 0o777 == 0o600
        holders = [file for file in publisher.root.iterdir() if file.is_file() and b"PRIVATE" in file.read_bytes()]
        assert holders == [publisher.key_file]

    def test_where_there_is_no_key_nothing_is_made(
        self, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("OLIVEPRESS_SIGNING_KEY_FILE", str(publisher.root / "none.pem"))

        assert run(["keys", "rotate"]) == 4

        assert "there is no signing key" in capsys.readouterr().err
        assert not (publisher.root / "none.pem").exists()

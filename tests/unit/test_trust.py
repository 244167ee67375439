"""A stack's key is believed at first sight; another one only if a known one handed over to it."""

import base64
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from olivepress.client import Client
from olivepress.errors import BadArtifact, NotFound, PermanentError, UntrustedKey
from olivepress.evidence.known_keys import KnownKeys, local_stack
from olivepress.evidence.signing import PublicKey, SigningKey
from olivepress.evidence.trust import Trust, check_without_stack, unpacked_content
from tests.unit.signed_versions import new_key, published, version_of

URL = "http://press.internal:8720"


def told(key: SigningKey, before: SigningKey | None = None, endorsement: bytes | None = None) -> dict[str, Any]:
    """A key as the API tells it."""
    if before and endorsement is None:
        endorsement = before.endorse(key.public)
    return {
        "id": key.public.id,
        "public_key": key.public.text,
        "created_at": 1.0,
        "endorsed_by": before.public.id if before else None,
        "endorsement": base64.b64encode(endorsement).decode() if endorsement else None,
    }


class Stack:
    """A stack whose API tells these keys, and what this machine believes of it."""

    def __init__(self, directory: Path, *keys: dict[str, Any], is_local: bool = False) -> None:
        self.keys: list[dict[str, Any]] | None = list(keys)
        self.said: list[str] = []
        client = Client(URL, "key", httpx.MockTransport(self._answer))
        known = KnownKeys(directory / "known_keys.json")
        self.trust = Trust(client, known, URL, is_local=is_local, tell=self.said.append)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if self.keys is None:
            return httpx.Response(404, json={"error_class": "NotFound", "detail": "there is no GET /v1/keys"})
        return httpx.Response(200, json=self.keys)


@pytest.fixture
def keys(tmp_path: Path) -> list[SigningKey]:
    return [new_key(tmp_path / "keys", f"{number}.pem") for number in range(4)]


def test_the_first_key_is_believed_told_and_remembered(tmp_path: Path, keys: list[SigningKey]) -> None:
    stack = Stack(tmp_path, told(keys[0]))

    assert stack.trust.key(keys[0].public.id) == keys[0].public
    assert "seen for the first time" in stack.said[0]
    # From now on the stack need not be asked.
    stack.keys = None
    assert stack.trust.key(keys[0].public.id) == keys[0].public
    assert len(stack.said) == 1


def test_a_changed_key_is_refused_loudly_until_a_person_says_so(tmp_path: Path, keys: list[SigningKey]) -> None:
    stack = Stack(tmp_path, told(keys[0]))
    stack.trust.key(keys[0].public.id)
    stack.keys = [told(keys[1]), told(keys[0])]

    with pytest.raises(UntrustedKey, match=f"THE KEY OF {URL} HAS CHANGED.*olivepress keys trust {keys[1].public.id}"):
        stack.trust.key(keys[1].public.id)

    assert stack.trust.accept(keys[1].public.id) == keys[1].public
    assert stack.trust.key(keys[1].public.id) == keys[1].public
    assert stack.trust.key(keys[0].public.id) == keys[0].public


def test_a_key_that_known_ones_handed_over_to_is_believed(tmp_path: Path, keys: list[SigningKey]) -> None:
    stack = Stack(tmp_path, told(keys[0]))
    stack.trust.key(keys[0].public.id)
    stack.keys = [told(keys[2], keys[1]), told(keys[1], keys[0]), told(keys[0])]

    assert stack.trust.key(keys[2].public.id) == keys[2].public
    assert "new key" in stack.said[-1]


@pytest.mark.parametrize("fraud", ["another's signature", "no signature", "a circle", "a link that is missing"])
def test_a_handing_over_that_is_none_is_refused(tmp_path: Path, keys: list[SigningKey], fraud: str) -> None:
    stack = Stack(tmp_path, told(keys[0]))
    stack.trust.key(keys[0].public.id)
    forged = keys[3].endorse(keys[1].public)
    stack.keys = {
        "another's signature": [told(keys[1], keys[0], forged), told(keys[0])],
        "no signature": [told(keys[1], keys[0], b""), told(keys[0])],
        "a circle": [told(keys[1], keys[2]), told(keys[2], keys[1])],
        "a link that is missing": [told(keys[1], keys[3])],
    }[fraud]

    with pytest.raises(UntrustedKey, match="HAS CHANGED"):
        stack.trust.key(keys[1].public.id)


def test_a_key_that_the_stack_does_not_offer_is_refused(tmp_path: Path, keys: list[SigningKey]) -> None:
    for offered in ([told(keys[0])], [], None, [{"id": "x"}, told(keys[0]) | {"public_key": "AAAA"}]):
        stack = Stack(tmp_path)
        stack.keys = offered

        with pytest.raises(UntrustedKey, match="does not say that this is its key"):
            stack.trust.key(keys[1].public.id)
    with pytest.raises(NotFound, match="has no key"):
        stack.trust.accept(keys[1].public.id)


def test_the_id_that_an_api_gives_a_key_counts_for_nothing(tmp_path: Path, keys: list[SigningKey]) -> None:
    stack = Stack(tmp_path, told(keys[0]) | {"id": keys[1].public.id})

    with pytest.raises(UntrustedKey):
        stack.trust.key(keys[1].public.id)


def test_the_stack_of_this_user_on_this_machine_is_always_believed(tmp_path: Path, keys: list[SigningKey]) -> None:
    stack = Stack(tmp_path, told(keys[0]), is_local=True)
    stack.trust.key(keys[0].public.id)
    stack.keys = [told(keys[1])]

    assert stack.trust.key(keys[1].public.id) == keys[1].public
    assert stack.said == []


def test_a_stack_is_local_only_if_its_own_data_directory_says_so(tmp_path: Path) -> None:
    environment = {"OLIVEPRESS_DATA_DIR": str(tmp_path)}
    assert local_stack("http://127.0.0.1:8720", environment) is None
    (tmp_path / "server.json").write_text(json.dumps({"url": "http://127.0.0.1:8720"}))

    assert local_stack("http://127.0.0.1:8720/", environment) == tmp_path.resolve()
    # A tunnel to another machine.
    assert local_stack("http://127.0.0.1:9000", environment) is None
    (tmp_path / "server.json").write_text("[]")
    assert local_stack("http://127.0.0.1:8720", environment) is None


class TestVersions:
    """What a stack hands out is held against its evidence before it is used."""

    def test_a_signed_version_passes(self, tmp_path: Path, keys: list[SigningKey]) -> None:
        stack = Stack(tmp_path, told(keys[0]))
        directory, manifest = published(tmp_path, keys[0])

        stack.trust.check(unpacked_content(directory, manifest), version_of(manifest))

    def test_one_that_is_not_signed_passes_and_that_is_told(self, tmp_path: Path, keys: list[SigningKey]) -> None:
        stack = Stack(tmp_path, told(keys[0]))
        directory, manifest = published(tmp_path, None)

        stack.trust.check(unpacked_content(directory, manifest), version_of(manifest))
        assert stack.said == ["support-int4:3 is not signed: only its checksums are verified"]
        # Somebody may have taken the signature off.
        stack.trust.key(keys[0].public.id)
        stack.trust.check(unpacked_content(directory, manifest), version_of(manifest))
        assert f"although {URL} signs what it publishes now" in stack.said[-1]

    def test_a_signed_version_under_another_number_or_team_is_refused(
        self, tmp_path: Path, keys: list[SigningKey]
    ) -> None:
        stack = Stack(tmp_path, told(keys[0]))
        directory, manifest = published(tmp_path, keys[0])
        version = version_of(manifest)

        for change in ({"number": 4}, {"team": "research"}, {"model": "legal-int4"}):
            with pytest.raises(BadArtifact, match="was signed as support-int4:3 of team 'default'"):
                stack.trust.check(unpacked_content(directory, manifest), version | change)

    def test_one_that_was_changed_after_it_was_signed_is_refused(self, tmp_path: Path, keys: list[SigningKey]) -> None:
        stack = Stack(tmp_path, told(keys[0]))
        directory, manifest = published(tmp_path, keys[0])
        other = (directory / "evidence.json").read_bytes().replace(b'"number": 3', b'"number": 4')
        (directory / "evidence.json").write_bytes(other)

        with pytest.raises(BadArtifact, match="is not what its publisher signed"):
            stack.trust.check(unpacked_content(directory, manifest), version_of(manifest) | {"number": 4})

    def test_without_a_stack_a_known_key_binds_and_an_unknown_one_is_told(
        self, tmp_path: Path, keys: list[SigningKey]
    ) -> None:
        directory, manifest = published(tmp_path, keys[0])
        content, said = unpacked_content(directory, manifest), list[str]()
        known = KnownKeys(tmp_path / "known_keys.json")

        check_without_stack(content, "support-int4:3", known, said.append)
        assert "which this machine does not know" in said.pop()
        known.add(URL, keys[0].public)
        check_without_stack(content, "support-int4:3", known, said.append)
        assert said == []
        with pytest.raises(BadArtifact, match="was signed as support-int4:3"):
            check_without_stack(content, "support-int4:4", known, said.append)
        (directory / "evidence.sig").write_bytes(bytes(64))
        with pytest.raises(BadArtifact, match="is not what its publisher signed"):
            check_without_stack(content, "support-int4:3", known, said.append)


class TestDistrust:
    """`olivepress keys distrust`: a key that somebody else may have."""

    def test_what_a_distrusted_key_signed_is_refused_although_the_stack_offers_it(
        self, tmp_path: Path, keys: list[SigningKey]
    ) -> None:
        stack = Stack(tmp_path, told(keys[0]))
        stack.trust.key(keys[0].public.id)

        stack.trust.refuse(keys[0].public.id)

        with pytest.raises(UntrustedKey, match="told to distrust"):
            stack.trust.key(keys[0].public.id)
        assert stack.trust.known.find(keys[0].public.id) is None

    def test_neither_first_sight_nor_a_handing_over_brings_it_back(
        self, tmp_path: Path, keys: list[SigningKey]
    ) -> None:
        stack = Stack(tmp_path, told(keys[0]), is_local=True)
        stack.trust.refuse(keys[0].public.id)
        stack.trust.is_local = False
        stack.keys = [told(keys[1], keys[0]), told(keys[0])]

        # The thief may hand over to a key of his own.
        with pytest.raises(UntrustedKey, match="HAS CHANGED: this machine knows none"):
            stack.trust.key(keys[1].public.id)
        stack.trust.is_local = True
        assert stack.trust.key(keys[1].public.id) == keys[1].public
        assert set(stack.trust.known.of(URL)) == {keys[1].public.id}

    def test_a_person_takes_it_back(self, tmp_path: Path, keys: list[SigningKey]) -> None:
        stack = Stack(tmp_path, told(keys[0]))
        stack.trust.refuse(keys[0].public.id)

        stack.trust.accept(keys[0].public.id)

        assert stack.trust.key(keys[0].public.id) == keys[0].public
        assert stack.trust.known.distrusted() == set()

    def test_it_holds_for_files_and_for_every_stack(self, tmp_path: Path, keys: list[SigningKey]) -> None:
        directory, manifest = published(tmp_path / "version", keys[0])
        stack = Stack(tmp_path, told(keys[0]))
        stack.trust.known.add("http://another", keys[0].public)
        stack.trust.known.add(URL, keys[0].public)
        content = unpacked_content(directory, manifest)
        check_without_stack(content, "support-int4:3", stack.trust.known, stack.said.append)

        stack.trust.refuse(keys[0].public.id)

        with pytest.raises(UntrustedKey, match="told to distrust"):
            check_without_stack(content, "support-int4:3", stack.trust.known, stack.said.append)
        assert stack.trust.known.of(URL) == stack.trust.known.of("http://another") == {}

    def test_a_key_that_nobody_knows_is_told(self, tmp_path: Path, keys: list[SigningKey]) -> None:
        with pytest.raises(NotFound, match="neither this machine nor"):
            Stack(tmp_path, told(keys[0])).trust.refuse(keys[1].public.id)


class TestFile:
    """The file of known keys."""

    def test_keys_of_stacks_are_kept_apart_and_each_once(self, tmp_path: Path, keys: list[SigningKey]) -> None:
        known = KnownKeys(tmp_path / "deep" / "known_keys.json")
        for stack, key in (("a", keys[0]), ("b", keys[1]), ("a", keys[0]), ("a", keys[2])):
            known.add(stack, key.public)

        assert set(known.of("a")) == {keys[0].public.id, keys[2].public.id}
        assert known.of("c") == {}
        assert len(known.all()) == 3
        entry = known.find(keys[1].public.id)
        assert entry is not None
        assert entry.stack == "b"

    def test_writers_at_once_lose_nothing(self, tmp_path: Path) -> None:
        known = KnownKeys(tmp_path / "known_keys.json")
        public = [PublicKey(bytes([number]) * 32) for number in range(12)]
        threads = [threading.Thread(target=known.add, args=("a", key)) for key in public]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert set(known.of("a")) == {key.id for key in public}

    @pytest.mark.parametrize(
        "content",
        ["", "[]", "{}", '{"schema_version": 2, "keys": []}', '{"schema_version": 1, "keys": [{"stack": "a"}]}'],
    )
    def test_a_file_that_cannot_be_understood_is_never_taken_for_an_empty_one(
        self, tmp_path: Path, content: str
    ) -> None:
        (tmp_path / "known_keys.json").write_text(content)

        with pytest.raises(PermanentError, match="not in the form that olivepress writes"):
            KnownKeys(tmp_path / "known_keys.json").all()
        with pytest.raises(PermanentError):
            KnownKeys(tmp_path / "known_keys.json").add("a", PublicKey(bytes(32)))
        assert (tmp_path / "known_keys.json").read_text() == content

    def test_an_entry_whose_id_is_not_its_keys_is_refused(self, tmp_path: Path) -> None:
        entry = {"stack": "a", "id": "0" * 16, "public_key": PublicKey(bytes(32)).text, "since": 1.0}
        (tmp_path / "known_keys.json").write_text(json.dumps({"schema_version": 1, "keys": [entry]}))

        with pytest.raises(PermanentError, match="not in the form"):
            KnownKeys(tmp_path / "known_keys.json").all()

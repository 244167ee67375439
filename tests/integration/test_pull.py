"""A pull ends with the version, whole and verified, over any link, after any kill, and moves only what is not there."""

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from olivepress.cli import run
from olivepress.client import Client
from olivepress.delivery import fetching
from olivepress.delivery.fetching import held
from olivepress.delivery.pull import pull
from olivepress.errors import BadArtifact, DiskFull, NotFound, PermanentError, ServiceUnavailable
from olivepress.evidence.trust import Trust
from olivepress.registry import parse_reference
from olivepress.store import Manifest
from olivepress.store.manifest import Chunk
from tests.broken_link import broken_link
from tests.integration.api_cases import KEY, PACKAGE, Api, api_with_versions, served

MIB = 1024 * 1024
MODEL = "a-int4"
# The same in every process: tests are told apart by their parameters.
_chance = random.Random(6)
WEIGHTS = _chance.randbytes(5 * MIB + 123)
PACKAGE_1 = PACKAGE | {"model.onnx.data": WEIGHTS, "big/tokenizer.json": _chance.randbytes(2 * MIB)}
# The same but for a part of another file.
PACKAGE_2 = PACKAGE_1 | {"big/tokenizer.json": _chance.randbytes(MIB), "copy.bin": WEIGHTS}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API with two versions of a model."""
    with api_with_versions(tmp_path_factory.mktemp("api"), PACKAGE_1, PACKAGE_2) as api:
        yield api


@pytest.fixture(scope="module")
def url(api: Api) -> Iterator[str]:
    with served(api.app) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, KEY) as client:
        yield client


def version(client: Client, number: int) -> dict[str, object]:
    return client.version(parse_reference(f"{MODEL}:{number}"))


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def assert_is(directory: Path, package: dict[str, bytes], number: int) -> None:
    found = contents(directory)
    assert {path: found[path] for path in package} == package
    assert json.loads(found["inference_model.json"])["Name"] == f"{MODEL}:{number}"
    assert set(found) == {*package, "inference_model.json", "olivepress.json", "report.json", "SHA256SUMS"}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


class TestPull:
    def test_a_version_arrives_with_nothing_beside_it(self, client: Client, tmp_path: Path) -> None:
        pulled = pull(client, version(client, 1), tmp_path / "target")

        assert_is(tmp_path / "target", PACKAGE_1, 1)
        assert names(tmp_path) == ["target"]
        assert pulled.received_bytes == pulled.total_bytes > 7 * MIB

    def test_pulling_again_moves_nothing_and_touches_nothing(self, client: Client, tmp_path: Path) -> None:
        pull(client, version(client, 1), tmp_path / "target")
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "target").rglob("*")}

        pulled = pull(client, version(client, 1), tmp_path / "target")

        assert (pulled.was_there, pulled.received_bytes) == (True, 0)
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "target").rglob("*")} == before

    @pytest.mark.parametrize("place", ["in the target", "beside it"])
    def test_an_older_version_gives_its_chunks(self, client: Client, tmp_path: Path, place: str) -> None:
        first = tmp_path / ("target" if place == "in the target" else "older")
        pull(client, version(client, 1), first)

        pulled = pull(client, version(client, 2), tmp_path / "target", replace=True)

        assert_is(tmp_path / "target", PACKAGE_2, 2)
        # The weights were there and are in two files now.
        assert MIB <= pulled.received_bytes < MIB + 10_000
        assert names(tmp_path) == (["target"] if place == "in the target" else ["older", "target"])

    def test_a_chunk_of_two_files_is_moved_once(self, client: Client, tmp_path: Path) -> None:
        pulled = pull(client, version(client, 2), tmp_path / "target")
        assert_is(tmp_path / "target", PACKAGE_2, 2)
        assert pulled.received_bytes < pulled.total_bytes - len(WEIGHTS) + 10_000

    def test_of_a_file_of_many_chunks_each_is_moved_once(self, client: Client, tmp_path: Path) -> None:
        wanted = version(client, 1)
        whole = client.artifact_manifest(wanted)
        pieces = [WEIGHTS[start : start + 100_000] for start in range(0, len(WEIGHTS), 100_000)]
        chunks = tuple(Chunk(hashlib.sha256(piece).hexdigest(), len(piece)) for piece in pieces)
        files = (
            dataclasses.replace(file, chunks=chunks) if file.path == "model.onnx.data" else file for file in whole.files
        )
        manifest = dataclasses.replace(whole, files=tuple(files))

        pulled = pull(_WithManifest(client, manifest), wanted, tmp_path / "target")

        assert_is(tmp_path / "target", PACKAGE_1, 1)
        assert pulled.received_bytes == pulled.total_bytes

    def test_progress_counts_up_to_all_bytes(self, client: Client, tmp_path: Path) -> None:
        seen: list[tuple[int, int]] = []
        pulled = pull(client, version(client, 2), tmp_path / "target", on_bytes=lambda *both: seen.append(both))
        assert seen == sorted(seen)
        assert seen[-1] == (pulled.total_bytes, pulled.total_bytes)

    def test_what_is_in_the_target_stays_unless_it_may_go(self, client: Client, tmp_path: Path) -> None:
        target = tmp_path / "target"
        target.mkdir()
        (target / "mine").write_text("mine")

        with pytest.raises(PermanentError, match=r"holds something else; with --replace a-int4:1 takes its place"):
            pull(client, version(client, 1), target)
        assert contents(target) == {"mine": b"mine"}

        pull(client, version(client, 1), target, replace=True)
        assert_is(target, PACKAGE_1, 1)

    def test_a_damaged_target_is_no_version(self, client: Client, tmp_path: Path) -> None:
        pull(client, version(client, 1), tmp_path / "target")
        damaged = bytearray(WEIGHTS)
        damaged[1000] ^= 1
        (tmp_path / "target/model.onnx.data").write_bytes(damaged)

        pulled = pull(client, version(client, 1), tmp_path / "target", replace=True)

        assert_is(tmp_path / "target", PACKAGE_1, 1)
        assert pulled.received_bytes == len(WEIGHTS)

    def test_what_another_pull_left_does_not_get_into_the_version(self, client: Client, tmp_path: Path) -> None:
        left = tmp_path / ".target.partial"
        (left / "files/strange/deep").mkdir(parents=True)
        (left / "files/strange/deep/file").write_text("of another version")
        (left / "files/genai_config.json").write_text("too long, and of another version, and wrong in every way" * 9)
        (left / "parts").mkdir()
        (left / "parts" / ("0" * 64)).write_text("part")

        pull(client, version(client, 1), tmp_path / "target")

        assert_is(tmp_path / "target", PACKAGE_1, 1)
        assert names(tmp_path) == ["target"]

    def test_a_kill_between_the_two_renames_of_a_replacement_is_mended_by_the_next_pull(
        self, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given
        target = tmp_path / "target"
        pull(client, version(client, 1), target)
        real, renames = Path.rename, iter(range(9))

        def rename(path: Path, to: Path) -> Path:
            if next(renames) == 1:
                raise KeyboardInterrupt
            return real(path, to)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Path, "rename", rename)
            pull(client, version(client, 2), target, replace=True)
        assert names(tmp_path) == [".target.old", ".target.partial"]
        # when
        pulled = pull(client, version(client, 2), target)
        # then
        assert pulled.received_bytes == 0
        assert_is(target, PACKAGE_2, 2)
        assert names(tmp_path) == ["target"]

    def test_two_pulls_to_one_target_are_told_apart(self, client: Client, tmp_path: Path) -> None:
        with held(tmp_path / ".target.partial", "a-int4:1"):
            with pytest.raises(ServiceUnavailable, match="is in use by another process"):
                pull(client, version(client, 1), tmp_path / "target")

    def test_pulls_that_start_while_another_ends_leave_one_whole_version_and_nothing_beside_it(
        self, client: Client, url: str, tmp_path: Path
    ) -> None:
        target = tmp_path / "target"
        failures: list[Exception] = []

        def pull_until_it_is_there() -> None:
            with Client(url, KEY) as own:
                for _ in range(500):
                    try:
                        pull(own, wanted, target)
                        return
                    except ServiceUnavailable:  # another one is at it
                        pass
                    except Exception as error:
                        failures.append(error)
                        return

        wanted = version(client, 1)
        for _ in range(6):
            threads = [threading.Thread(target=pull_until_it_is_there) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert failures == [] and names(tmp_path) == ["target"]
            assert_is(target, PACKAGE_1, 1)
            shutil.rmtree(target)

    def test_a_pull_does_not_replace_what_another_has_put_there_meanwhile(
        self, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It looked at the target before it had the lock."""
        target = tmp_path / "target"
        real, others = fetching.exclusive, [version(client, 1)]

        @contextlib.contextmanager
        def after_another(path: Path, *, wait_s: float, what: str) -> Iterator[None]:
            if others:
                pull(client, others.pop(), target)
                path.parent.mkdir()
            with real(path, wait_s=wait_s, what=what):
                yield

        monkeypatch.setattr(fetching, "exclusive", after_another)
        with pytest.raises(PermanentError, match="with --replace a-int4:2 takes its place"):
            pull(client, version(client, 2), target)
        assert_is(target, PACKAGE_1, 1)
        assert names(tmp_path) == ["target"]

    def test_a_link_that_leads_nowhere_is_something_else_and_makes_way_when_it_may_go(
        self, client: Client, tmp_path: Path
    ) -> None:
        target = tmp_path / "target"
        target.symlink_to("nowhere")
        with pytest.raises(PermanentError, match="holds something else"):
            pull(client, version(client, 1), target)
        for _ in range(2):
            pull(client, version(client, 1), target, replace=True)
            assert_is(target, PACKAGE_1, 1)
            assert names(tmp_path) == ["target"]
            shutil.rmtree(target)
            target.write_text("a file")

    def test_too_little_room_is_said_before_anything_is_moved(
        self, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "olivepress.delivery.fetching.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})()
        )
        with pytest.raises(DiskFull, match=r"a-int4:1 needs 7 MB more in .* where 0 MB are free"):
            pull(client, version(client, 1), tmp_path / "target")


class TestLies:
    def test_a_manifest_that_is_not_the_versions_is_refused(self, client: Client, tmp_path: Path) -> None:
        lie = version(client, 1) | {"artifact_digest": "0" * 64}
        with pytest.raises(BadArtifact, match="the list of files of a-int4:1 arrived damaged"):
            pull(client, lie, tmp_path / "target")
        assert names(tmp_path) == []

    def test_content_that_arrives_damaged_again_and_again_is_refused(self, client: Client, tmp_path: Path) -> None:
        class Liar(Client):
            asked = 0

            def read_range(self, *arguments: object) -> Iterator[bytes]:
                self.asked += 1
                return (bytes(len(block)) for block in super().read_range(*arguments))  # type: ignore[arg-type]

        with Liar(client.url, KEY) as liar, pytest.raises(BadArtifact, match="arrived damaged 3 times"):
            pull(liar, version(client, 1), tmp_path / "target")
        assert not (tmp_path / "target").exists()

    def test_content_that_arrives_damaged_once_is_asked_for_again(self, client: Client, tmp_path: Path) -> None:
        class Noisy(Client):
            lies = 1

            def read_range(self, version: dict[str, object], path: str, start: int, end: int) -> Iterator[bytes]:
                for block in super().read_range(version, path, start, end):
                    lying, self.lies = self.lies, 0
                    yield bytes(len(block)) if lying else block

        with Noisy(client.url, KEY) as noisy:
            pull(noisy, version(client, 1), tmp_path / "target")
        assert_is(tmp_path / "target", PACKAGE_1, 1)


class TestLinks:
    @pytest.mark.parametrize("seed", range(2))
    def test_a_link_that_drops_at_random_bytes_costs_little(self, url: str, tmp_path: Path, seed: int) -> None:
        with (
            broken_link(url, range(1, MIB), seed=seed) as link,
            Client(link.url, KEY) as client,
            client.patient([0.01] * 50),
        ):
            trust = Trust.of(client, lambda text: None)
            pulled = pull(client, version(client, 1), tmp_path / "target", trust=trust, sleep=lambda seconds: None)

            assert link.drops > 5
        assert_is(tmp_path / "target", PACKAGE_1, 1)
        # What had arrived was never asked for again, but for what was on the line.
        assert pulled.received_bytes == pulled.total_bytes
        assert link.carried_bytes < 2 * pulled.total_bytes

    def test_a_link_that_never_comes_back_ends_with_an_error_and_what_arrived_is_kept(
        self, url: str, client: Client, tmp_path: Path
    ) -> None:
        # given
        with broken_link(url, range(0)) as link, Client(link.url, KEY) as over_link:
            wanted = version(over_link, 1)
            manifest = over_link.artifact_manifest(wanted)
            link.passes_bytes = range(MIB, MIB + 1)
            waits: list[float] = []

            def wait(seconds: float) -> None:
                waits.append(seconds)
                link.passes_bytes = range(1, 2)

            # when
            with pytest.raises(ServiceUnavailable, match="the connection to"):
                pull(_WithManifest(over_link, manifest), wanted, tmp_path / "target", sleep=wait)
        # then
        assert max(waits) > 10
        assert names(tmp_path) == [".target.partial"]
        pulled = pull(client, wanted, tmp_path / "target")
        assert_is(tmp_path / "target", PACKAGE_1, 1)
        assert pulled.received_bytes < pulled.total_bytes - MIB // 2

    def test_a_version_that_is_gone_meanwhile_ends_at_once(self, client: Client, tmp_path: Path) -> None:
        wanted = version(client, 1)
        manifest = client.artifact_manifest(wanted)
        with pytest.raises(NotFound):
            pull(_WithManifest(client, manifest), wanted | {"number": 99}, tmp_path / "target")


class _WithManifest:
    """A client that has the manifest already: its answer is small, and not what these tests are about."""

    def __init__(self, client: Client, manifest: Manifest) -> None:
        self._client, self._manifest = client, manifest

    def artifact_manifest(self, version: dict[str, object]) -> Manifest:
        return self._manifest

    def __getattr__(self, name: str) -> object:
        return getattr(self._client, name)


class TestKills:
    def test_a_pull_that_is_killed_again_and_again_comes_to_its_end(self, url: str, tmp_path: Path) -> None:
        # given a slow line, and kills long before all of it is through
        with broken_link(url, range(0), delay_s=0.02) as link:
            environment = os.environ | {"OLIVEPRESS_URL": link.url, "OLIVEPRESS_API_KEY": KEY}
            command = [sys.executable, "-m", "olivepress", "pull", f"{MODEL}:1", "--to", str(tmp_path / "target")]
            kills = 0
            # when
            while kills < 12:
                puller = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                carried_before = link.carried_bytes
                deadline = time.monotonic() + 20
                while puller.poll() is None and link.carried_bytes < carried_before + 1_500_000:
                    assert time.monotonic() < deadline
                    time.sleep(0.005)
                # then nothing of it can be seen
                if puller.poll() is None:
                    assert not (tmp_path / "target").exists()
                    puller.send_signal(signal.SIGKILL)
                    kills += 1
                _, said = puller.communicate()
                if puller.returncode == 0:
                    break
                assert puller.returncode == -signal.SIGKILL, said
        # then
        assert kills >= 3
        assert_is(tmp_path / "target", PACKAGE_1, 1)
        assert names(tmp_path) == ["target"]
        # Each kill cost what was on the line and in sockets, not what had arrived.
        assert link.carried_bytes < sum(map(len, PACKAGE_1.values())) + kills * 4 * 400_000


class TestRanges:
    def get(self, api: Api, range_: str, path: str = "model.onnx.data", **headers: str) -> object:
        return api.http.get(f"/v1/models/{MODEL}/versions/1/files/{path}", headers={"Range": range_, **headers})

    @pytest.mark.parametrize(
        ("range_", "expected"),
        [
            ("bytes=0-0", slice(1)),
            ("bytes=100-299", slice(100, 300)),
            ("bytes=5000000-", slice(5000000, None)),
            ("bytes=-10", slice(-10, None)),
            ("bytes=10-99999999", slice(10, None)),
        ],
    )
    def test_a_range_of_a_file_is_sent(self, api: Api, range_: str, expected: slice) -> None:
        answer = self.get(api, range_)
        assert (answer.status_code, answer.content) == (206, WEIGHTS[expected])
        start, stop, _ = expected.indices(len(WEIGHTS))
        assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(WEIGHTS)}"

    @pytest.mark.parametrize("range_", ["bytes=0-1,5-6", "lines=1-2", "bytes=9-3", "bytes=-", "junk"])
    def test_what_is_no_range_that_is_known_gives_the_whole_file(self, api: Api, range_: str) -> None:
        answer = self.get(api, range_)
        assert (answer.status_code, answer.content) == (200, WEIGHTS)

    def test_a_range_behind_the_end_is_refused(self, api: Api) -> None:
        answer = self.get(api, "bytes=99999999-")
        assert (answer.status_code, answer.headers["Content-Range"]) == (416, f"bytes */{len(WEIGHTS)}")

    def test_an_empty_file_has_no_range(self, api: Api) -> None:
        answer = self.get(api, "bytes=0-", "empty.txt")
        assert (answer.status_code, answer.content) == (200, b"")


class TestCommands:
    @pytest.fixture(autouse=True)
    def stack(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OLIVEPRESS_URL", url)
        monkeypatch.setenv("OLIVEPRESS_API_KEY", KEY)
        # Packages of these tests are no real models, and the runtime would rightly decline them.
        monkeypatch.setattr("olivepress.foundry.runtime.has_sdk", lambda: False)

    def test_pull_says_what_came_over_the_network(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["pull", f"{MODEL}:1", "--to", str(tmp_path / "m")]) == 0
        assert f"a-int4:1 is in {tmp_path / 'm'}: 7." in capsys.readouterr().out
        assert run(["pull", MODEL, "--to", str(tmp_path / "m")]) == 1
        assert "holds a-int4:1; with --replace" in capsys.readouterr().err
        assert run(["pull", MODEL, "--to", str(tmp_path / "m"), "--replace", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["received_bytes"] < 2 * MIB

    def test_a_newer_version_is_installed_beside_the_older_one(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], api: Api
    ) -> None:
        cache = ["--foundry-cache", str(tmp_path)]
        assert run(["install", f"{MODEL}:1", *cache]) == 0
        assert run(["install", f"{MODEL}:2", *cache]) == 0
        assert_is(tmp_path / "olivepress/a-int4-1", PACKAGE_1, 1)
        assert_is(tmp_path / "olivepress/a-int4-2", PACKAGE_2, 2)
        assert listed(tmp_path) == {"a-int4:1", "a-int4:2"}

        assert run(["install", f"{MODEL}:2", *cache, "--replace", "--json"]) == 0

        assert json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))["replaced"] == ["a-int4:1"]
        assert not (tmp_path / "olivepress/a-int4-1").exists()
        assert listed(tmp_path) == {"a-int4:2"}

    def test_uninstall_leaves_what_others_installed(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        cache = ["--foundry-cache", str(tmp_path)]
        assert run(["install", f"{MODEL}:1", *cache]) == 0
        index_file = tmp_path / "foundry.local.modelinfo.json"
        index = json.loads(index_file.read_text())
        other = {"model_info": {"id": "other:1"}, "model_path": "/elsewhere"}
        index_file.write_text(json.dumps(index | {"models": [*index["models"], other]}))

        assert run(["uninstall", f"{MODEL}:1", *cache]) == 0
        assert run(["uninstall", f"{MODEL}:1", *cache]) == 0

        assert "a-int4:1 was not installed" in capsys.readouterr().out
        assert json.loads(index_file.read_text())["models"] == [other]
        assert [name for name in names(tmp_path / "olivepress") if not name.endswith(".lock")] == []

    def test_uninstall_asks_which_of_several(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        cache = ["--foundry-cache", str(tmp_path)]
        assert run(["uninstall", MODEL, *cache]) == 4
        for number in (1, 2):
            assert run(["install", f"{MODEL}:{number}", *cache]) == 0
        assert run(["uninstall", MODEL, *cache]) == 2
        assert "a-int4:1, a-int4:2 are installed; name one of them, or give --all" in capsys.readouterr().err
        assert run(["uninstall", MODEL, *cache, "--all"]) == 0
        assert listed(tmp_path) == set()


def listed(cache: Path) -> set[str]:
    index = json.loads((cache / "foundry.local.modelinfo.json").read_text())
    return {entry["model_info"]["id"] for entry in index["models"]}


def test_what_was_pulled_is_plain_values(client: Client, tmp_path: Path) -> None:
    pulled = pull(client, version(client, 1), tmp_path / "target")
    assert set(dataclasses.asdict(pulled)) == {
        "version",
        "directory",
        "total_bytes",
        "received_bytes",
        "was_there",
    }

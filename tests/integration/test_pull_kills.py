"""A pull that is killed at random, over a line that drops at random, onto a disk that lies, ends whole."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from olivepress.client import Client
from olivepress.delivery.pull import pull
from olivepress.errors import BadArtifact
from olivepress.registry import parse_reference
from olivepress.store import keeper_of
from olivepress.store.keeping import Part
from tests.broken_link import broken_link
from tests.integration.api_cases import KEY, PACKAGE, Api, api_with_versions, served

MIB = 1024 * 1024
_chance = random.Random(11)
FIRST = PACKAGE | {"model.onnx.data": _chance.randbytes(6 * MIB + 77), "big/tokenizer.json": _chance.randbytes(MIB)}
SECOND = FIRST | {"big/tokenizer.json": _chance.randbytes(MIB)}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API with two versions that differ in one file."""
    with api_with_versions(tmp_path_factory.mktemp("api"), FIRST, SECOND) as api:
        yield api


@pytest.fixture(scope="module")
def url(api: Api) -> Iterator[str]:
    with served(api.app) as url:
        yield url


def holds(directory: Path, package: dict[str, bytes]) -> bool:
    return all((directory / path).read_bytes() == content for path, content in package.items())


# Forks for each try, so that a kill costs no start of Python.
PULLER = """
import os, random, signal, sys, time
from olivepress.client import Client
from olivepress.errors import ServiceUnavailable
from olivepress.delivery.pull import pull
from olivepress.registry import parse_reference
from pathlib import Path
url, key, reference, target, seed, most_kills, longest_s = sys.argv[1:]
chosen, kills = random.Random(int(seed)), 0

def puller():
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with Client(url, key) as client:
                while True:
                    try:
                        version = client.version(parse_reference(reference))
                        pull(client, version, Path(target), sleep=lambda seconds: None)
                        break
                    except ServiceUnavailable:
                        continue
            code = 0
        finally:
            os._exit(code)
    return pid

while True:
    pid = puller()
    if kills < int(most_kills):
        time.sleep(chosen.uniform(0.01, float(longest_s)))  # the moment of the kill is what is random here
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 0:
        break
    assert code == -9, code
    assert not os.path.exists(target)
    kills += 1
print(kills)
"""


def test_kills_and_drops_at_random_cost_only_what_was_on_the_line(url: str, tmp_path: Path, seed: int = 1) -> None:
    target = tmp_path / "target"
    with broken_link(url, range(100_000, 3 * MIB), seed=seed, delay_s=0.004) as link:
        command = [sys.executable, "-c", PULLER, link.url, KEY, "a-int4:1", str(target), str(seed), "12", "0.4"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)

        assert done.returncode == 0, done.stderr
        kills = int(done.stdout)
        assert kills >= 3 and link.drops >= 1
    assert holds(target, FIRST)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    # Four connections, each with what the proxy and the sockets between hold.
    assert link.carried_bytes < sum(map(len, FIRST.values())) + (kills + link.drops) * 4 * 400_000


@pytest.mark.parametrize("seed", range(2))
def test_an_unfinished_pull_that_was_damaged_on_the_disk_fetches_just_the_damaged_chunks(
    url: str, tmp_path: Path, seed: int
) -> None:
    # given a pull that was killed when most of it was there
    chosen = random.Random(seed)
    target, partial = tmp_path / "target", tmp_path / ".target.partial"
    with Client(url, KEY) as client:
        version = client.version(parse_reference("a-int4:1"))
        total = client.artifact_manifest(version).size_bytes

        class Killed(BaseException):
            pass

        def kill(done_bytes: int, total_bytes: int) -> None:
            if done_bytes > 0.8 * total_bytes:
                raise Killed

        with pytest.raises(Killed):
            pull(client, version, target, on_bytes=kill)
        # when a file of it loses a bit, its end, or gets a stranger beside it
        (path,) = (path for path in partial.rglob("model.onnx.data") if path.is_file())
        if seed % 2:
            content = bytearray(path.read_bytes())
            content[chosen.randrange(len(content))] ^= 1
            path.write_bytes(content)
        else:
            with path.open("r+b") as file:
                file.truncate(chosen.randrange(path.stat().st_size))
        (path.parent / "stranger").write_bytes(b"of somebody else")
        # then
        pulled = pull(client, version, target)
    assert holds(target, FIRST)
    assert not (target / "stranger").exists()
    assert pulled.received_bytes < total


def test_a_newer_version_fetches_only_what_is_new_over_kills_too(url: str, tmp_path: Path) -> None:
    # given the older one beside it
    with Client(url, KEY) as client:
        pull(client, client.version(parse_reference("a-int4:1")), tmp_path / "older")
    with broken_link(url, range(0), seed=3, delay_s=0.02) as link:
        command = [sys.executable, "-c", PULLER, link.url, KEY, "a-int4:2", str(tmp_path / "newer"), "3", "10", "0.2"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        kills = int(done.stdout)
    # then only the file that differs came over
    assert holds(tmp_path / "newer", SECOND) and holds(tmp_path / "older", FIRST)
    assert json.loads((tmp_path / "newer" / "inference_model.json").read_text())["Name"] == "a-int4:2"
    assert link.carried_bytes < MIB + (kills + 1) * 4 * 400_000 + 200_000


def test_a_pull_meets_a_chunk_in_quarantine_with_a_clear_error_and_ends_when_it_is_healed(
    api: Api, url: str, tmp_path: Path
) -> None:
    # given a version with a chunk that a repair took out of use
    keeper, target = keeper_of(api.store), tmp_path / "target"
    with Client(url, KEY) as client:
        version = client.version(parse_reference("a-int4:1"))
        manifest = client.artifact_manifest(version)
        part = Part(manifest.file("big/tokenizer.json").chunks[-1].sha256)
        right = keeper.read(part)
        path = api.store.places.chunk(part.sha256)
        path.chmod(0o644)
        path.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
        assert keeper.quarantine(part)
        # when, then
        with pytest.raises(BadArtifact, match="found damaged and lies in quarantine"):
            pull(client, version, target, sleep=lambda seconds: None)
        assert not target.exists()
        # when, then
        keeper.put(part, right)
        pulled = pull(client, version, target)
    assert holds(target, FIRST)
    assert pulled.received_bytes < manifest.size_bytes

"""Kills, full disks and broken lines leave nothing half visible in a store of either kind; what is put is whole."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from olivepress.errors import ServiceUnavailable
from olivepress.store import Manifest, keeper_of
from olivepress.store.artifacts import ArtifactStore
from olivepress.store.bucket import BucketStore
from olivepress.store.checking import Checker, Damage
from olivepress.store.healing import Healer
from olivepress.store.keeping import Part
from tests.broken_link import broken_link
from tests.s3_server import S3Server, s3_server
from tests.unit.store_cases import KINDS, Opened, in_bucket, in_directory

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture(params=KINDS)
def opened(request: pytest.FixtureRequest, tmp_path: Path, server: S3Server) -> Opened:
    server.calm()
    return in_directory(tmp_path / "store") if request.param == "directory" else in_bucket(server)


def sources(root: Path, count: int, seed: int) -> list[Path]:
    """Directories to put, all with one file in common."""
    content = random.Random(seed)
    shared = content.randbytes(300_000)
    made = []
    for number in range(count):
        directory = root / f"source-{number}"
        (directory / "nested").mkdir(parents=True)
        (directory / "shared").write_bytes(shared)
        for part in range(6):
            (directory / "nested" / f"file-{part}").write_bytes(content.randbytes(40_000 + part))
        made.append(directory)
    return made


def assert_nothing_is_half_visible(store: ArtifactStore) -> None:
    assert Checker(keeper_of(store)).run().findings == []


def assert_whole(store: ArtifactStore, manifest: Manifest, source: Path, target: Path) -> None:
    store.materialise(manifest.digest, target)
    for file in manifest.files:
        assert (target / file.path).read_bytes() == (source / file.path).read_bytes()
    shutil.rmtree(target)


# Forks for each writer, so that a kill costs no start of Python; the store's client is first used in the fork.
KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
from tests.unit.reopened_stores import reopened
address, seed, writers, *sources = sys.argv[1:]
chosen, took, ended = random.Random(int(seed)), 0.3, []

def writer(source):
    pid = os.fork()
    if pid == 0:
        try:
            reopened(address).put_directory(Path(source))
            os._exit(0)
        finally:
            os._exit(1)
    return pid

began = time.monotonic()
_, status = os.waitpid(writer(sources[0]), 0)
took = time.monotonic() - began
for source in sources[1:]:
    pids = [writer(source) for _ in range(int(writers))]
    time.sleep(chosen.uniform(0, 1.1 * took))  # the moment of the kill is what is random here
    os.kill(pids[0], signal.SIGKILL)
    ended.append([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])
print(json.dumps({"first": os.waitstatus_to_exitcode(status), "ended": ended}))
"""


class TestKills:
    @pytest.mark.parametrize(("writers", "rounds"), [(1, 14), (2, 6)], ids=["alone", "beside another writer"])
    def test_writers_that_are_killed_at_random_leave_only_what_a_sweep_removes(
        self, opened: Opened, tmp_path: Path, writers: int, rounds: int
    ) -> None:
        # given
        made = sources(tmp_path, rounds + 1, seed=writers)
        command = [sys.executable, "-c", KILLER, opened.address, str(writers), str(writers), *map(str, made)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        # then a writer beside the killed one comes to its end
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["first"] == 0
        assert all(code in (0, -9) for code, *_ in told["ended"])
        assert all(code == 0 for _, *others in told["ended"] for code in others), done.stderr
        assert_nothing_is_half_visible(opened.store)
        # and putting again gives whole artifacts
        for source in made:
            assert_whole(opened.store, opened.store.put_directory(source), source, tmp_path / "target")
        assert_nothing_is_half_visible(opened.store)
        assert opened.store.stats().artifacts == len(made)
        opened.store.sweep_temporary(0)
        if (tmp_path / "store").exists():
            assert list((tmp_path / "store" / "tmp").iterdir()) == []


HEALER = """
import os, random, signal, sys, time
from olivepress.store import keeper_of
from olivepress.store.checking import Checker
from olivepress.store.healing import Healer
from tests.unit.reopened_stores import reopened
address, copy, seed, rounds = sys.argv[1:]
chosen = random.Random(int(seed))

def healer():
    pid = os.fork()
    if pid == 0:
        try:
            keeper = keeper_of(reopened(address))
            Healer(keeper, [keeper_of(reopened(copy))]).heal(Checker(keeper).run())
            os._exit(0)
        finally:
            os._exit(1)
    return pid

for _ in range(int(rounds)):
    pid = healer()
    time.sleep(chosen.uniform(0.005, 0.25))  # the moment of the kill is what is random here
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
print(os.waitstatus_to_exitcode(os.waitpid(healer(), 0)[1]))
"""


def test_repairs_that_are_killed_at_random_lose_nothing_and_the_last_one_ends(opened: Opened, tmp_path: Path) -> None:
    # given a store with damage in many chunks, and a copy of it
    copy = in_directory(tmp_path / "copy")
    made = sources(tmp_path, 3, seed=9)
    manifests = [opened.store.put_directory(source) for source in made]
    for source in made:
        copy.store.put_directory(source)
    hurt = {name: os.urandom(50_000) for name in sorted(opened.chunks())[::2]}
    for name, content in hurt.items():
        opened.overwrite(name, content)
    # when
    command = [sys.executable, "-c", HEALER, opened.address, copy.address, "1", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    # then
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr
    assert_nothing_is_half_visible(opened.store)
    for source, manifest in zip(made, manifests, strict=True):
        assert_whole(opened.store, manifest, source, tmp_path / "target")
    keeper = keeper_of(opened.store)
    for name, content in hurt.items():
        assert content in list(keeper.copies(Part(name))), "what was damaged is still there"


FILLER = """
import subprocess, sys
from pathlib import Path
from olivepress.errors import DiskFull
from olivepress.store import DirectoryStore, keeper_of
from olivepress.store.checking import Checker
from olivepress.store.healing import Healer
disk, *sources = map(Path, sys.argv[1:])
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk]).returncode:
    print("cannot mount")
    sys.exit()
filler = disk / "filler"
filler.write_bytes(bytes(800_000))
store, put, refused = DirectoryStore(disk / "store"), [], []
for source in sources:
    try:
        put.append(store.put_directory(source).digest)
    except DiskFull as error:
        refused.append(source)
        assert "Free some space there and try again" in str(error), error
assert put and refused
assert Checker(keeper_of(store)).run().findings == []
assert not list((disk / "store" / "tmp").iterdir())
assert all(store.has(digest) for digest in put)
# Healing on a full disk: an error, and the damaged chunk is still where it was.
manifest = store.manifest(put[0])
chunk = store.places.chunk(manifest.file("shared").sha256)
right = chunk.read_bytes()
chunk.chmod(0o644)
chunk.write_bytes(right[:-1] + b"?")
while True:
    try:
        with (disk / "rest").open("ab") as rest:
            rest.write(bytes(4096))
    except OSError:
        break
other = DirectoryStore(Path(sources[0].parent / "other"))
other.put_directory(sources[0])
scan = Checker(keeper_of(store)).run()
assert len(scan.findings) == 1
try:
    Healer(keeper_of(store), [keeper_of(other)]).heal(scan)
    raise SystemExit("a full disk took the chunk")
except DiskFull:
    assert chunk.exists()
# With room again everything goes on.
filler.unlink()
(disk / "rest").unlink()
Healer(keeper_of(store), [keeper_of(other)]).heal(Checker(keeper_of(store)).run())
store.put_directory(refused[0])
assert Checker(keeper_of(store)).run().findings == []
print("whole", len(put), len(refused))
"""


def test_a_store_on_a_full_disk_shows_only_whole_artifacts_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("no unshare(1) to mount a small file system with")
    (tmp_path / "disk").mkdir()
    made = sources(tmp_path, 10, seed=3)
    unshared = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshared, "true"], capture_output=True).returncode:
        pytest.skip("this kernel lets nobody mount in a namespace of one's own")
    command = [*unshared, sys.executable, "-c", FILLER, str(tmp_path / "disk"), *map(str, made)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "cannot mount" in done.stdout:
        pytest.skip("this kernel lets nobody mount in a namespace of one's own")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("whole")


class TestBrokenLines:
    @pytest.mark.parametrize("seed", range(3))
    def test_a_line_to_the_bucket_that_drops_costs_tries_or_ends_with_an_error(
        self, server: S3Server, tmp_path: Path, seed: int
    ) -> None:
        # given connections that break after a random number of bytes of their answers
        server.calm()
        straight = server.bucket(timeout_s=2.0)
        name, _, prefix = straight.name.removeprefix("s3://").partition("/")
        made = sources(tmp_path, 3, seed)
        put, laid_out = [], 0
        with broken_link(server.url, range(500, 200_000), seed=seed) as link:
            through = S3Server(link.url).opened(name, prefix, timeout_s=2.0)
            store = BucketStore(through)
            for source in made:
                try:
                    put.append((source, store.put_directory(source)))
                    store.materialise(put[-1][1].digest, tmp_path / f"target-{len(put)}")
                    laid_out += 1
                except ServiceUnavailable:
                    pass
            assert link.drops > 0
        # then
        assert laid_out > 0
        direct = BucketStore(straight)
        assert_nothing_is_half_visible(direct)
        for source, manifest in put:
            assert_whole(direct, manifest, source, tmp_path / "whole")
        for number in range(1, len(put) + 1):
            target = tmp_path / f"target-{number}"
            assert not target.exists() or len([path for path in target.rglob("*") if path.is_file()]) == 7

    def test_a_check_through_failures_finds_what_one_without_them_finds(self, server: S3Server, tmp_path: Path) -> None:
        # given
        opened = in_bucket(server)
        (source,) = sources(tmp_path, 1, seed=1)
        manifest = opened.store.put_directory(source)
        hurt = manifest.file("shared").sha256
        opened.overwrite(hurt, os.urandom(300_000))
        count = iter(range(10**6))
        server.status_of = lambda request: 503 if next(count) % 4 == 3 else None
        # when
        scan = Checker(keeper_of(opened.store)).run()
        # then
        assert [(each.part.sha256, each.damage) for each in scan.findings] == [(hurt, Damage.ALTERED)]
        assert [each.outcome for each in Healer(keeper_of(opened.store)).heal(scan)] == ["quarantined"]
        server.calm()

    def test_a_check_of_a_bucket_that_stops_answering_says_so_and_takes_nothing_for_damaged(
        self, server: S3Server, tmp_path: Path
    ) -> None:
        opened = in_bucket(server)
        (source,) = sources(tmp_path, 1, seed=1)
        opened.store.put_directory(source)
        hurried = keeper_of(BucketStore(server.opened(*_place(opened), timeout_s=0.5)))
        server.status_of = lambda request: 503 if "/chunks/" in request.key else None
        with pytest.raises(ServiceUnavailable, match="does not answer"):
            Checker(hurried).run()
        server.calm()
        assert keeper_of(opened.store).quarantined() == 0
        assert_nothing_is_half_visible(opened.store)


def _place(opened: Opened) -> tuple[str, str]:
    _, _, name, prefix = opened.address.split(" ")
    return name, prefix

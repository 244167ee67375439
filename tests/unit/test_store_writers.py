"""Writers may be many and may die at any point: what can be seen in the store is whole."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from olivepress.store import DirectoryStore

PUT = """
import sys
from pathlib import Path
from olivepress.store import DirectoryStore
store = DirectoryStore(Path(sys.argv[1]))
"""

# Dies before the n-th call that changes the disk; a file that waits for its fsync is then half written.
DIE_AT = """
import itertools, os, signal, stat
calls, fatal = itertools.count(1), int(sys.argv[3])
def deadly(name):
    real = getattr(os, name)
    def call(*arguments, **options):
        if next(calls) == fatal:
            if name == "fsync" and stat.S_ISREG((status := os.fstat(arguments[0])).st_mode):
                os.ftruncate(arguments[0], status.st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    setattr(os, name, call)
for name in ("open", "fsync", "mkdir", "replace"):
    deadly(name)
"""


def writer(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def assert_what_can_be_seen_is_whole(store: DirectoryStore) -> None:
    for chunk in store.root.glob("chunks/*/*"):
        assert hashlib.sha256(chunk.read_bytes()).hexdigest() == chunk.name
    for manifest in store.root.glob("manifests/*/*.json"):
        assert store.has(manifest.stem)


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX signal")
def test_a_writer_killed_before_any_of_its_calls_leaves_nothing_half_visible(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.onnx").write_bytes(os.urandom(5000))
    (source / "genai_config.json").write_text("{}")
    script = PUT + DIE_AT + "store.put_directory(Path(sys.argv[2]))"
    killed, outcome = 0, -signal.SIGKILL
    while outcome == -signal.SIGKILL:
        # given a new store, when its writer dies one call later than the last one
        store = DirectoryStore(tmp_path / f"store-{killed}")
        with writer(script, store.root, source, killed + 1) as child:
            outcome = child.wait()
        # then what can be seen is whole, leftovers lie only in tmp/, and the next writer succeeds
        assert_what_can_be_seen_is_whole(store)
        store.sweep_temporary(older_than_s=0)
        assert list((store.root / "tmp").iterdir()) == []
        store.materialise(store.put_directory(source).digest, tmp_path / f"target-{killed}")
        killed += outcome == -signal.SIGKILL
    assert outcome == 0
    assert killed >= 12  # three files written, each with open, fsync, mkdir, replace


def test_writers_of_the_same_content_do_not_disturb_each_other(tmp_path: Path) -> None:
    # given
    source = tmp_path / "source"
    source.mkdir()
    for number in range(30):
        (source / f"file-{number}").write_bytes(os.urandom(20_000))
    store = DirectoryStore(tmp_path / "store")
    # when four processes start together and put it
    go = "sys.stdin.readline(); print(store.put_directory(Path(sys.argv[2])).digest)"
    command = [sys.executable, "-c", PUT + go, str(store.root), str(source)]
    writers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for each in writers:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    answers = [each.communicate()[0].strip() for each in writers]
    # then they made one artifact
    assert [each.returncode for each in writers] == [0] * 4
    assert len(set(answers)) == 1
    assert store.stats().artifacts == 1
    assert list((store.root / "tmp").iterdir()) == []
    assert_what_can_be_seen_is_whole(store)

"""Where a checkpoint may lie, which of its files count, and what names their content and their state."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from olivepress.checkpoints.files import (
    HashedFile,
    adapter_base,
    allowed_directory,
    check_links,
    checkpoint_digest,
    file_identity,
    hash_file,
    read_json,
    relevant_files,
)
from olivepress.errors import BadCheckpoint, CheckpointChanged, PathNotAllowed
from tests.unit.plain_checkpoints import write_adapter, write_checkpoint, write_json


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


class TestRoots:
    def test_a_directory_under_a_root_is_allowed(self, root: Path) -> None:
        checkpoint = write_checkpoint(root / "team" / "model")

        assert allowed_directory(str(checkpoint), [root]) == checkpoint

    def test_a_directory_outside_is_refused_with_the_roots_and_the_way_to_add_one(
        self, root: Path, tmp_path: Path
    ) -> None:
        outside = write_checkpoint(tmp_path / "outside")

        with pytest.raises(PathNotAllowed) as refusal:
            allowed_directory(str(outside), [root, "/srv/models"])

        assert f"allowed: {root}, /srv/models" in str(refusal.value)
        assert "'olivepress up --root DIR'" in str(refusal.value)
        assert "OLIVEPRESS_CHECKPOINT_ROOTS" in str(refusal.value)

    def test_outside_the_roots_nothing_tells_whether_a_directory_exists(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "present").mkdir()

        refusals = []
        for name in ("present", "absent"):
            with pytest.raises(PathNotAllowed) as refusal:
                allowed_directory(str(tmp_path / name), [root])
            refusals.append(str(refusal.value).replace(name, "*"))

        assert refusals[0] == refusals[1]

    def test_a_root_whose_name_only_begins_alike_does_not_count(self, root: Path, tmp_path: Path) -> None:
        neighbour = write_checkpoint(tmp_path / "root-of-others")

        with pytest.raises(PathNotAllowed):
            allowed_directory(str(neighbour), [root])

    def test_dots_do_not_lead_out(self, root: Path, tmp_path: Path) -> None:
        write_checkpoint(tmp_path / "outside")

        with pytest.raises(PathNotAllowed):
            allowed_directory(f"{root}/../outside", [root])

    def test_a_link_that_leads_out_is_refused(self, root: Path, tmp_path: Path) -> None:
        (root / "model").symlink_to(write_checkpoint(tmp_path / "outside"))

        with pytest.raises(PathNotAllowed, match="root/model"):
            allowed_directory(str(root / "model"), [root])

    def test_a_root_that_is_itself_a_link_still_holds_what_is_in_it(self, root: Path, tmp_path: Path) -> None:
        checkpoint = write_checkpoint(root / "model")
        (tmp_path / "alias").symlink_to(root)

        assert allowed_directory(str(checkpoint), [tmp_path / "alias"]) == checkpoint

    def test_without_roots_nothing_is_allowed(self, root: Path) -> None:
        with pytest.raises(PathNotAllowed, match="allowed: none"):
            allowed_directory(str(write_checkpoint(root / "model")), [])

    @pytest.mark.parametrize("path", ["models/support", "C:\\models", "", "/models\0/x", "~/models"])
    def test_a_path_that_is_not_absolute_is_refused(self, root: Path, path: str) -> None:
        with pytest.raises(BadCheckpoint, match="no absolute path"):
            allowed_directory(path, [root])

    def test_a_hub_address_is_refused_for_nothing_is_fetched_here(self, root: Path) -> None:
        with pytest.raises(BadCheckpoint, match=r"'hf://org/model@main' is on a hub .* fetches nothing; download it"):
            allowed_directory("hf://org/model@main", [root])

    def test_a_directory_that_is_not_there_is_named(self, root: Path) -> None:
        with pytest.raises(BadCheckpoint, match=r"there is no directory '.*/root/none'"):
            allowed_directory(str(root / "none"), [root])

    def test_a_name_too_long_for_any_directory_is_one_that_is_not_there(self, root: Path) -> None:
        with pytest.raises(BadCheckpoint, match="there is no directory"):
            allowed_directory(str(root / ("x" * 5000)), [root])

    def test_a_file_in_place_of_a_directory_is_named(self, root: Path) -> None:
        checkpoint = write_checkpoint(root / "model")

        with pytest.raises(BadCheckpoint, match=r"model\.safetensors' is a file; give the directory"):
            allowed_directory(str(checkpoint / "model.safetensors"), [root])


class TestLinks:
    def test_a_file_that_links_out_of_the_roots_is_refused(self, root: Path, tmp_path: Path) -> None:
        checkpoint = write_checkpoint(root / "model")
        (tmp_path / "secret.json").write_text("{}")
        (checkpoint / "generation_config.json").symlink_to(tmp_path / "secret.json")

        with pytest.raises(PathNotAllowed, match=r"generation_config\.json' is a link that leads out"):
            check_links(checkpoint, [root])

    def test_a_file_that_links_within_the_roots_is_allowed(self, root: Path) -> None:
        checkpoint = write_checkpoint(root / "model")
        blob = root / "blob"
        (checkpoint / "model.safetensors").rename(blob)
        (checkpoint / "model.safetensors").symlink_to(blob)

        check_links(checkpoint, [root])

    def test_a_link_to_nothing_is_refused(self, root: Path) -> None:
        checkpoint = write_checkpoint(root / "model")
        (checkpoint / "chat_template.jinja").symlink_to(root / "gone")

        with pytest.raises(BadCheckpoint, match=r"chat_template\.jinja' is a link to a file that is not there"):
            check_links(checkpoint, [root])

    def test_a_pipe_is_refused_for_reading_it_would_wait_for_ever(self, root: Path) -> None:
        checkpoint = write_checkpoint(root / "model")
        (checkpoint / "model.safetensors").unlink()
        os.mkfifo(checkpoint / "model.safetensors")

        with pytest.raises(BadCheckpoint, match=r"model\.safetensors' is no regular file"):
            check_links(checkpoint, [root])

    def test_a_pipe_named_like_an_adapters_config_does_not_hold_up_the_worker(self, root: Path) -> None:
        os.mkfifo(root / "adapter_config.json")

        assert adapter_base(root) is None


class TestRelevantFiles:
    def test_what_a_trainer_leaves_beside_the_model_does_not_count(self, root: Path) -> None:
        checkpoint = write_checkpoint(root / "model")
        for name in ("README.md", "optimizer.pt", "training_args.bin", "trainer_state.json", "runs"):
            (checkpoint / name).write_text("x")

        names = {path.name for path in relevant_files(checkpoint)}

        assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}

    def test_checksum_files_count_for_the_state_of_the_files_not_for_their_content(self, root: Path) -> None:
        checkpoint = write_checkpoint(root / "model")
        (checkpoint / "SHA256SUMS").write_text("")

        assert "SHA256SUMS" not in {path.name for path in relevant_files(checkpoint)}
        assert "SHA256SUMS" in {path.name for path in relevant_files(checkpoint, sidecars=True)}


class TestJson:
    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (b'{"a": 1,\n "b": }', r"is no JSON \(line 2\)"),
            (b"", "is no JSON"),
            (b'\xef\xbb\xbf{"a": 1}', "is no JSON"),
            (b'{"a": "\xff"}', "is no JSON"),
            (b"[" * 100_000, "is no JSON"),
            (b"[1]", "holds no JSON object"),
        ],
    )
    def test_what_is_no_json_object_is_refused_with_its_place(
        self, tmp_path: Path, content: bytes, complaint: str
    ) -> None:
        path = tmp_path / "config.json"
        path.write_bytes(content)

        with pytest.raises(BadCheckpoint, match=rf"config\.json {complaint}"):
            read_json(path)

    def test_a_file_that_may_not_be_read_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_json(tmp_path / "config.json", {})

        def refuse(*_: object, **__: object) -> str:
            raise PermissionError(13, "Permission denied", str(path))

        # The tests may run as root, which may read everything.
        monkeypatch.setattr(Path, "read_text", refuse)

        with pytest.raises(BadCheckpoint, match=r"config\.json cannot be read: permission denied"):
            read_json(path)


class TestContent:
    def test_the_hash_is_that_of_all_bytes_and_progress_adds_up(self, tmp_path: Path) -> None:
        content = os.urandom(9_000_000)
        (tmp_path / "f").write_bytes(content)
        counts: list[int] = []

        assert hash_file(tmp_path / "f", counts.append) == hashlib.sha256(content).hexdigest()
        assert len(counts) > 1
        assert sum(counts) == len(content)

    def test_a_file_that_vanished_meanwhile_is_told_as_such(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointChanged, match="vanished"):
            hash_file(tmp_path / "gone")

    def test_the_digest_depends_on_names_sizes_contents_and_base_and_not_on_the_order(self) -> None:
        files = [HashedFile("a", 1, "aa"), HashedFile("b", 2, "bb")]

        digest = checkpoint_digest(files, None)

        assert checkpoint_digest(reversed(files), None) == digest
        others = [
            checkpoint_digest([HashedFile("c", 1, "aa"), files[1]], None),
            checkpoint_digest([HashedFile("a", 3, "aa"), files[1]], None),
            checkpoint_digest([HashedFile("a", 1, "cc"), files[1]], None),
            checkpoint_digest(files[:1], None),
            checkpoint_digest(files, "dd"),
        ]
        assert len({digest, *others}) == 6


def rewrite_in_place(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    state = path.stat()
    path.write_bytes(bytes(state.st_size))
    # The size and the time of change are as before; the inode's own time cannot be set back.
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def replace_by_a_copy(checkpoint: Path) -> None:
    path = checkpoint / "config.json"
    copy = path.with_suffix(".new")
    copy.write_bytes(path.read_bytes())
    os.utime(copy, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    copy.replace(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "rewritten with size and time as before": rewrite_in_place,
    "replaced by an equal file": replace_by_a_copy,
    "touched": lambda checkpoint: os.utime(checkpoint / "tokenizer.json"),
    "removed": lambda checkpoint: (checkpoint / "tokenizer.json").unlink(),
    "added": lambda checkpoint: (checkpoint / "chat_template.jinja").write_text("x"),
    "checksums added": lambda checkpoint: (checkpoint / "SHA256SUMS").write_text(""),
}


class TestIdentity:
    def test_it_stays_while_no_file_changes(self, tmp_path: Path) -> None:
        checkpoint = write_checkpoint(tmp_path / "model")

        assert file_identity(checkpoint) == file_identity(checkpoint)

    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_it_changes_when_a_relevant_file_was(self, tmp_path: Path, change: Callable[[Path], object]) -> None:
        checkpoint = write_checkpoint(tmp_path / "model")
        before = file_identity(checkpoint)
        wait_for_the_clock_of_the_file_system(tmp_path)

        change(checkpoint)

        assert file_identity(checkpoint) not in (before, None)

    def test_it_does_not_change_with_files_that_do_not_count(self, tmp_path: Path) -> None:
        checkpoint = write_checkpoint(tmp_path / "model")
        before = file_identity(checkpoint)

        (checkpoint / "README.md").write_text("x")

        assert file_identity(checkpoint) == before

    def test_it_covers_the_base(self, tmp_path: Path) -> None:
        base, adapter = write_checkpoint(tmp_path / "base"), write_adapter(tmp_path / "adapter")
        before = file_identity(adapter, base)
        wait_for_the_clock_of_the_file_system(tmp_path)

        os.utime(base / "model.safetensors")

        assert file_identity(adapter, base) != before
        assert file_identity(adapter) != file_identity(adapter, base)

    def test_a_link_that_now_leads_elsewhere_has_another_identity(self, tmp_path: Path) -> None:
        link = tmp_path / "latest"
        link.symlink_to(write_checkpoint(tmp_path / "one"))
        before = file_identity(link)
        link.unlink()

        link.symlink_to(write_checkpoint(tmp_path / "two"))

        assert file_identity(link) != before

    def test_new_files_are_not_settled_for_a_second_change_could_leave_their_times_as_they_are(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checkpoint = write_checkpoint(tmp_path / "model")
        now = time.time_ns()

        monkeypatch.setattr(time, "time_ns", lambda: now + 1_000_000_000)
        assert file_identity(checkpoint, settled=True) is None
        monkeypatch.setattr(time, "time_ns", lambda: now + 3_000_000_000)
        assert file_identity(checkpoint, settled=True) == file_identity(checkpoint)

    def test_files_that_cannot_be_listed_have_none(self, tmp_path: Path) -> None:
        assert file_identity(tmp_path / "none") is None
        assert file_identity(Path("/\0")) is None


def wait_for_the_clock_of_the_file_system(directory: Path) -> None:
    """Until a new file gets a later time: kernels stamp files by a clock that moves every few milliseconds."""
    probe = directory / "probe"
    probe.write_text("")
    first = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == first:
        probe.write_text("")


class TestNamedBase:
    def test_a_local_directory_that_an_adapter_names_is_its_base(self, tmp_path: Path) -> None:
        base = write_checkpoint(tmp_path / "base")
        adapter = write_adapter(tmp_path / "adapter", base_model_name_or_path=str(base))

        assert adapter_base(adapter) == base

    @pytest.mark.parametrize("named", ["Qwen/Qwen2.5-0.5B", "../base", None, 7, "/none/here", "/\0"])
    def test_a_name_of_anything_else_is_none(self, tmp_path: Path, named: object) -> None:
        write_checkpoint(tmp_path / "base")

        assert adapter_base(write_adapter(tmp_path / "adapter", base_model_name_or_path=named)) is None

    def test_a_folder_without_a_readable_adapter_config_has_none(self, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text("{")

        assert adapter_base(tmp_path) is None
        assert adapter_base(write_checkpoint(tmp_path / "full")) is None

"""An archive is the same bytes every time, and one that anybody has touched is refused before it does any harm."""

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from olivepress.cli import run
from olivepress.delivery import archive
from olivepress.delivery.archive import extract, read_archive, write_archive
from olivepress.errors import BadArtifact, DiskFull, PermanentError
from olivepress.foundry.inference_model import sums_text
from olivepress.store import DirectoryStore, Manifest

LONG = "/".join(["a-long-directory-name"] * 8) + "/file.json"
FILES = {
    "genai_config.json": json.dumps({"model": {"context_length": 4096}}).encode(),
    "inference_model.json": json.dumps({"Name": "support-int4:3"}).encode(),
    "model.onnx.data": bytes(range(256)) * 500,
    "empty.txt": b"",
    "nested/ünïcode.txt": b"text",
    LONG: b"{}",
}


class Exported:
    """A version, and its archive."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = root / "files"
        sums = sums_text({path: hashlib.sha256(content).hexdigest() for path, content in FILES.items()}).encode()
        self.content = FILES | {"SHA256SUMS": sums}
        for path, content in self.content.items():
            (self.files / path).parent.mkdir(parents=True, exist_ok=True)
            (self.files / path).write_bytes(content)
        self.manifest = DirectoryStore(root / "store").put_directory(self.files)
        self.version: dict[str, Any] = {
            "model": "support-int4",
            "number": 3,
            "version": "support-int4:3",
            "recipe": "cpu-int4",
            "precision": "int4",
            "family": "qwen2",
            "size_bytes": self.manifest.size_bytes,
            "package_digest": "a" * 64,
            "artifact_digest": self.manifest.digest,
            "report": {"prompts": {"passed": 7}},
            "provenance": {"checkpoint": {"name": "ünïcode"}},
            # What changes with time is not exported.
            "aliases": ["production"],
            "created_at": 1.5,
            "team": "default",
        }
        self.file = root / "support.tar"
        write_archive(self.file, self.version, self.manifest, self.files)


@pytest.fixture
def exported(tmp_path: Path) -> Exported:
    return Exported(tmp_path)


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def extracted(file: Path, target: Path) -> dict[str, bytes]:
    target.mkdir()
    extract(read_archive(file), target)
    return contents(target)


class TestGood:
    def test_a_version_comes_back_as_it_was(self, exported: Exported, tmp_path: Path) -> None:
        found = read_archive(exported.file)
        assert (found.model, found.number, found.manifest) == ("support-int4", 3, exported.manifest)
        assert found.version["provenance"] == exported.version["provenance"]
        assert extracted(exported.file, tmp_path / "target") == exported.content

    def test_it_is_the_same_bytes_every_time(self, exported: Exported, tmp_path: Path) -> None:
        for path in exported.files.rglob("*"):
            path.chmod(0o700)
        later = exported.version | {"aliases": [], "created_at": 2.5}
        write_archive(tmp_path / "again.tar", later, exported.manifest, exported.files)
        assert (tmp_path / "again.tar").read_bytes() == exported.file.read_bytes()

    def test_tar_itself_unpacks_it_and_finds_the_checksums_right(self, exported: Exported, tmp_path: Path) -> None:
        target = tmp_path / "target"
        target.mkdir()
        subprocess.run(["tar", "xf", exported.file, "-C", target], check=True)
        assert contents(target / "support-int4-3") == exported.content
        checked = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
        subprocess.run(checked, cwd=target / "support-int4-3", check=True)

    def test_a_file_that_changed_before_the_export_is_found(self, exported: Exported, tmp_path: Path) -> None:
        (exported.files / "genai_config.json").write_text("{}")
        with pytest.raises(BadArtifact, match=r"genai_config\.json of support-int4:3 changed"):
            write_archive(tmp_path / "again.tar", exported.version, exported.manifest, exported.files)


def member(
    name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", **more: Any
) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size, entry.mode = kind, len(content), 0o644
    for key, value in more.items():
        setattr(entry, key, value)
    return entry, content


Members = list[tuple[tarfile.TarInfo, bytes]]
STEM = "support-int4-3"


def rewrite(file: Path, change: Callable[[Members], Members]) -> None:
    """The archive with other members, each of them legal tar."""
    with tarfile.open(file) as tar:
        members = [(entry, source.read() if (source := tar.extractfile(entry)) else b"") for entry in tar]
    for entry, _ in members:
        entry.pax_headers = {}
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as tar:
        for entry, content in change(members):
            tar.addfile(entry, io.BytesIO(content))


def replaced(path: str, *new: tuple[tarfile.TarInfo, bytes]) -> Callable[[Members], Members]:
    def change(members: Members) -> Members:
        at = next(place for place, (entry, _) in enumerate(members) if entry.name == f"{STEM}/{path}")
        return [*members[:at], *new, *members[at + 1 :]]

    return change


CONFIG = FILES["genai_config.json"]
HOSTILE: dict[str, Callable[[Members], Members]] = {
    "an absolute path": replaced("genai_config.json", member("/tmp/evil", content=CONFIG)),
    "a path upwards": replaced("genai_config.json", member(f"{STEM}/../../evil", content=CONFIG)),
    "a symbolic link": replaced(
        "genai_config.json", member(f"{STEM}/genai_config.json", tarfile.SYMTYPE, linkname="/etc/passwd")
    ),
    "a hard link": replaced(
        "genai_config.json", member(f"{STEM}/genai_config.json", tarfile.LNKTYPE, linkname="/etc/passwd")
    ),
    "a device": replaced("empty.txt", member(f"{STEM}/empty.txt", tarfile.CHRTYPE, devmajor=1, devminor=5)),
    "a pipe": replaced("empty.txt", member(f"{STEM}/empty.txt", tarfile.FIFOTYPE)),
    "a directory": replaced("empty.txt", member(f"{STEM}/empty.txt", tarfile.DIRTYPE)),
    "a link to write through": lambda members: [
        members[0], member(f"{STEM}/nested", tarfile.SYMTYPE, linkname="/tmp"), *members[1:]
    ],
    "an entry too many": lambda members: [*members, member(f"{STEM}/more", content=b"more")],
    "an entry twice": lambda members: [*members, members[1]],
    "an entry too few": lambda members: members[:-1],
    "another order": lambda members: [members[0], *reversed(members[1:])],
    "another content": replaced("genai_config.json", member(f"{STEM}/genai_config.json", content=CONFIG[::-1])),
    "a larger size": replaced("genai_config.json", member(f"{STEM}/genai_config.json", content=CONFIG + b" " * 900)),
    "an executable": replaced("genai_config.json", member(f"{STEM}/genai_config.json", content=CONFIG, mode=0o755)),
    "an owner": replaced("genai_config.json", member(f"{STEM}/genai_config.json", content=CONFIG, uname="root")),
    "a time": replaced("genai_config.json", member(f"{STEM}/genai_config.json", content=CONFIG, mtime=1)),
    "a sparse file": replaced(
        "genai_config.json",
        member(f"{STEM}/genai_config.json", content=CONFIG, pax_headers={"GNU.sparse.major": "1"}),
    ),
    "no description": lambda members: members[1:],
    "nothing": lambda members: [],
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_archive_with_other_entries_is_refused_and_writes_nothing_elsewhere(
    exported: Exported, tmp_path: Path, kind: str
) -> None:
    rewrite(exported.file, HOSTILE[kind])
    cage = tmp_path / "cage"
    cage.mkdir()

    with pytest.raises(BadArtifact, match="is refused"):
        extracted(exported.file, cage / "target")

    assert {path.name for path in cage.iterdir()} <= {"target"}
    for path in cage.rglob("*"):
        assert not path.is_symlink()
        assert path.is_dir() or contents(cage / "target")[path.relative_to(cage / "target").as_posix()] in (
            *exported.content.values(),
            CONFIG[::-1],
        )


def redescribed(file: Path, change: Callable[[dict[str, Any]], object], *, keep_digest: bool = False) -> None:
    """The archive with a description that says something else, in its right form and with the right sizes."""

    def described(members: Members) -> Members:
        description = json.loads(members[0][1])
        change(description)
        if not keep_digest:
            manifest = json.dumps(description["manifest"], sort_keys=True, separators=(",", ":")).encode()
            description["version"]["artifact_digest"] = hashlib.sha256(manifest).hexdigest()
        content = json.dumps(description, sort_keys=True, indent=1).encode() + b"\n"
        return [member(members[0][0].name, content=content), *members[1:]]

    rewrite(file, described)


def set_path(path: str) -> Callable[[dict[str, Any]], None]:
    def change(description: dict[str, Any]) -> None:
        files = description["manifest"]["files"]
        next(file for file in files if file["path"] == "empty.txt")["path"] = path
        files.sort(key=lambda file: file["path"])

    return change


def set_version(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda description: description["version"].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        *map(set_path, ["../evil", "/etc/evil", "a/../../evil", "c:evil", "a\\evil", "con", "x" * 300, "evil.", ""]),
        set_path("GENAI_CONFIG.json"),
        set_version(model="../../evil"),
        set_version(model="con"),
        set_version(model=7),
        set_version(number=0),
        set_version(number=-1),
        set_version(number=True),
        set_version(number="3"),
        set_version(more="more"),
        lambda description: description["version"].pop("report"),
        lambda description: description.update(more=1),
        lambda description: description["manifest"]["files"].pop(),
        lambda description: description["manifest"]["files"].clear(),
        lambda description: description["manifest"]["files"][0].update(size_bytes=10**15),
        lambda description: description["manifest"]["files"][0].update(size_bytes=-1),
        lambda description: description["manifest"].update(schema_version=9),
        lambda description: description.update(manifest=[]),
    ],
)  # fmt: skip
def test_a_description_of_something_that_cannot_be_is_refused_before_anything_is_written(
    exported: Exported, change: Callable[[dict[str, Any]], object]
) -> None:
    redescribed(exported.file, change)
    with pytest.raises(BadArtifact, match="is refused"):
        read_archive(exported.file)


def test_a_list_of_files_that_is_not_the_versions_is_refused(exported: Exported) -> None:
    redescribed(exported.file, set_path("other.txt"), keep_digest=True)
    with pytest.raises(BadArtifact, match="its list of files is not that of its version"):
        read_archive(exported.file)


def test_a_later_format_says_what_to_do(exported: Exported) -> None:
    redescribed(exported.file, lambda description: description.update(format=2))
    with pytest.raises(PermanentError, match="has the archive format 2 where 1 is known"):
        read_archive(exported.file)


def test_another_spelling_of_the_description_is_refused(exported: Exported) -> None:
    def spaced(members: Members) -> Members:
        return [member(members[0][0].name, content=members[0][1] + b" "), *members[1:]]

    rewrite(exported.file, spaced)
    with pytest.raises(BadArtifact, match="not in the form that olivepress writes"):
        read_archive(exported.file)


def test_a_packed_archive_is_refused_so_it_cannot_grow(exported: Exported) -> None:
    exported.file.write_bytes(gzip.compress(exported.file.read_bytes()))
    with pytest.raises(BadArtifact, match=r"is refused: (it does not begin as a tar does, or it is packed|its desc)"):
        read_archive(exported.file)


def test_a_huge_description_is_refused_unread(exported: Exported, tmp_path: Path) -> None:
    entry = tarfile.TarInfo(f"{STEM}.json")
    entry.size = archive.DESCRIPTION_LIMIT_BYTES + 1
    exported.file.write_bytes(entry.tobuf(tarfile.USTAR_FORMAT))
    with pytest.raises(BadArtifact, match="its description is empty or too long"):
        read_archive(exported.file)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.99999])
def test_an_archive_that_is_cut_off_is_refused_before_anything_is_written(exported: Exported, share: float) -> None:
    content = exported.file.read_bytes()
    exported.file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BadArtifact, match="is refused"):
        read_archive(exported.file)


def test_an_archive_that_is_mostly_a_hole_is_refused_where_its_files_have_no_room(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sparse file of a few kilobytes can hold terabytes of zeros, each with its right checksum."""
    target = tmp_path / "target"
    target.mkdir()
    found = read_archive(exported.file)
    usage = shutil.disk_usage(tmp_path)._replace(free=found.manifest.size_bytes - 1)
    monkeypatch.setattr("olivepress.delivery.archive.shutil.disk_usage", lambda path: usage)

    with pytest.raises(DiskFull, match="free some space and try again"):
        extract(found, target)

    assert list(target.iterdir()) == []


def test_bytes_behind_the_end_are_refused(exported: Exported) -> None:
    with exported.file.open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(BadArtifact, match="it is cut off, or has more in it"):
        read_archive(exported.file)


def test_every_flipped_bit_is_found(exported: Exported, tmp_path: Path) -> None:
    content = exported.file.read_bytes()
    for place in range(0, len(content), 4001):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        exported.file.write_bytes(damaged)
        with pytest.raises((BadArtifact, PermanentError)):
            extracted(exported.file, tmp_path / f"target-{place}")


class TestCommand:
    def test_import_makes_the_directory_and_leaves_nothing_else(
        self, exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        place = tmp_path / "place"
        assert run(["import", str(exported.file), "--to", str(place / "target")]) == 0
        assert contents(place / "target") == exported.content
        assert [path.name for path in place.iterdir()] == ["target"]
        assert run(["import", str(exported.file), "--to", str(place / "target")]) == 1
        assert "exists already" in capsys.readouterr().err

    def test_a_damaged_archive_leaves_nothing(self, exported: Exported, tmp_path: Path) -> None:
        rewrite(exported.file, HOSTILE["another content"])
        place = tmp_path / "place"
        assert run(["import", str(exported.file), "--to", str(place / "target")]) == 1
        assert list(place.iterdir()) == []

    def test_import_installs(
        self, exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("olivepress.foundry.runtime.has_sdk", lambda: False)
        cache = tmp_path / "cache"
        for was_there in (False, True):
            assert run(["import", str(exported.file), "--foundry-cache", str(cache), "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["was_there"] is was_there
        assert contents(cache / "olivepress/support-int4-3") == exported.content
        index = json.loads((cache / "foundry.local.modelinfo.json").read_text())
        assert [entry["model_info"]["id"] for entry in index["models"]] == ["support-int4:3"]

    def test_two_places_at_once_are_refused(
        self, exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        places = ["--to", str(tmp_path / "target"), "--foundry-cache", str(tmp_path / "cache")]
        assert run(["import", str(exported.file), *places]) == 2
        assert "either --to DIR or --foundry-cache DIR" in capsys.readouterr().err

    def test_what_only_the_stack_can_do_is_refused_where_it_is_only_unpacked(
        self, exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["import", str(exported.file), "--to", str(tmp_path / "target"), "--name", "other"]) == 2
        assert "leave the other options out" in capsys.readouterr().err


def test_the_manifest_comes_back_equal(exported: Exported) -> None:
    assert Manifest.parse(read_archive(exported.file).manifest.to_json()) == exported.manifest

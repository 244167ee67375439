"""An install into a Foundry Local cache is whole or not at all, and leaves the entries of others alone."""

import errno
import hashlib
import json
import threading
from pathlib import Path

import pytest

from olivepress.errors import BadArtifact, BadManifest, DiskFull, NotAllowed, ServiceUnavailable
from olivepress.file_lock import exclusive
from olivepress.foundry import index as foundry_index
from olivepress.foundry.cache import install_into_cache
from olivepress.foundry.inference_model import sums_text

INDEX = "foundry.local.modelinfo.json"
OTHER_ENTRY = {"model_info": {"id": "other:7", "unknown_key": [1, {"deep": None}]}, "model_path": "C:\\models\\other"}


def _published(directory: Path, model_id: str = "support-int4:1", weights: bytes = b"weights") -> Path:
    """A model version as publish leaves it; returns its directory."""
    directory.mkdir(parents=True)
    (directory / "genai_config.json").write_text(json.dumps({"model": {"context_length": 4096}}))
    (directory / "inference_model.json").write_text(json.dumps({"Name": model_id}))
    (directory / "model.onnx.data").write_bytes(weights)
    _write_sums(directory)
    return directory


def _write_sums(directory: Path) -> None:
    files = [file for file in directory.iterdir() if file.name != "SHA256SUMS"]
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    (directory / "SHA256SUMS").write_text(sums_text(sums))


def _index(cache: Path) -> dict[str, dict[str, object]]:
    models = json.loads((cache / INDEX).read_text())["models"]
    return {entry["model_info"]["id"]: entry for entry in models}


def test_a_version_is_installed_with_its_files_and_its_entry(tmp_path: Path) -> None:
    source, cache = _published(tmp_path / "source"), tmp_path / "cache"

    installed = install_into_cache(source, cache, "support-int4", 1)

    assert installed.directory == cache / "olivepress" / "support-int4-1"
    assert installed.model_id == "support-int4:1"
    assert not installed.was_there
    assert {file.name for file in installed.directory.iterdir()} == {file.name for file in source.iterdir()}
    assert _index(cache)["support-int4:1"]["model_path"] == str(installed.directory)


def test_only_the_version_its_lock_and_the_index_are_left_in_the_cache(tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    install_into_cache(_published(tmp_path / "source"), cache, "support-int4", 1)

    assert sorted(path.name for path in cache.iterdir()) == [
        "foundry.local.modelinfo.json",
        "foundry.local.modelinfo.lock",
        "olivepress",
    ]
    assert sorted(path.name for path in (cache / "olivepress").iterdir()) == [".support-int4-1.lock", "support-int4-1"]


def test_entries_of_others_stay_as_they_are(tmp_path: Path) -> None:
    source, cache = _published(tmp_path / "source"), tmp_path / "cache"
    cache.mkdir()
    (cache / INDEX).write_text(json.dumps({"catalog_name": "local", "models": [OTHER_ENTRY], "version": 2, "more": 1}))

    install_into_cache(source, cache, "support-int4", 1)

    index = json.loads((cache / INDEX).read_text())
    assert index["models"][0] == OTHER_ENTRY
    assert index["more"] == 1
    assert len(index["models"]) == 2


def test_installing_again_changes_nothing(tmp_path: Path) -> None:
    source, cache = _published(tmp_path / "source"), tmp_path / "cache"
    first = install_into_cache(source, cache, "support-int4", 1)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in first.directory.iterdir()}
    index_before = (cache / INDEX).read_bytes()

    again = install_into_cache(source, cache, "support-int4", 1)

    assert again.was_there
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in first.directory.iterdir()} == before
    assert (cache / INDEX).read_bytes() == index_before


@pytest.mark.parametrize("damage", ["bit flip", "missing file", "missing sums", "unfinished", "no entry", "other text"])
def test_installing_again_heals_damage(tmp_path: Path, damage: str) -> None:
    source, cache = _published(tmp_path / "source"), tmp_path / "cache"
    directory = install_into_cache(source, cache, "support-int4", 1).directory
    match damage:
        case "bit flip":
            (directory / "model.onnx.data").write_bytes(b"weighty")
        case "missing file":
            (directory / "genai_config.json").unlink()
        case "missing sums":
            (directory / "SHA256SUMS").unlink()
        case "unfinished":
            (directory / "download.tmp").touch()
        case "no entry":
            (cache / INDEX).unlink()
        case "other text":
            (directory / "inference_model.json").write_text("{")

    install_into_cache(source, cache, "support-int4", 1)

    assert (directory / "model.onnx.data").read_bytes() == b"weights"
    assert {file.name for file in directory.iterdir()} == {file.name for file in source.iterdir()}
    assert "support-int4:1" in _index(cache)


def test_a_download_is_installed_like_a_directory(tmp_path: Path) -> None:
    source, cache = _published(tmp_path / "source"), tmp_path / "cache"
    calls = []

    def download(directory: Path) -> None:
        calls.append(directory)
        for file in source.iterdir():
            (directory / file.name).write_bytes(file.read_bytes())

    sums = (source / "SHA256SUMS").read_text()
    first = install_into_cache(download, cache, "support-int4", 1, sums=sums)
    again = install_into_cache(download, cache, "support-int4", 1, sums=sums)

    assert (first.was_there, again.was_there) == (False, True)
    assert len(calls) == 1


def test_an_installed_version_with_other_content_than_published_is_replaced(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    install_into_cache(_published(tmp_path / "old"), cache, "support-int4", 1)

    installed = install_into_cache(_published(tmp_path / "new", weights=b"other"), cache, "support-int4", 1)

    assert (installed.directory / "model.onnx.data").read_bytes() == b"other"


def test_a_damaged_download_leaves_nothing_and_no_entry(tmp_path: Path) -> None:
    source, cache = _published(tmp_path / "source"), tmp_path / "cache"
    (source / "model.onnx.data").write_bytes(b"cut off")

    with pytest.raises(BadArtifact, match=r"model\.onnx\.data of support-int4:1 is missing or damaged"):
        install_into_cache(source, cache, "support-int4", 1)

    assert [path.name for path in (cache / "olivepress").iterdir()] == [".support-int4-1.lock"]
    assert not (cache / INDEX).exists()


def test_a_failed_update_keeps_the_version_that_was_there(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    directory = install_into_cache(_published(tmp_path / "good"), cache, "support-int4", 1).directory

    def broken_download(directory: Path) -> None:
        (directory / "SHA256SUMS").write_text("")

    with pytest.raises(BadArtifact):
        install_into_cache(broken_download, cache, "support-int4", 1, sums="something newer")

    assert (directory / "model.onnx.data").read_bytes() == b"weights"


def test_files_of_another_version_are_refused(tmp_path: Path) -> None:
    source = _published(tmp_path / "source", model_id="support-int4:2")

    with pytest.raises(BadArtifact, match="those of support-int4:2, not of support-int4:1"):
        install_into_cache(source, tmp_path / "cache", "support-int4", 1)


def test_a_directory_that_was_never_published_is_refused(tmp_path: Path) -> None:
    source = _published(tmp_path / "source")
    (source / "SHA256SUMS").unlink()

    with pytest.raises(BadArtifact, match="only a published version can be installed"):
        install_into_cache(source, tmp_path / "cache", "support-int4", 1)


def test_a_name_that_is_not_legal_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(BadManifest):
        install_into_cache(_published(tmp_path / "source"), tmp_path / "cache", "../evil", 1)

    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[]", "holds no list of models"),
        ('{"models": [], "version": 3}', "layout version 3"),
        ('{"models": [{"model_path": "x"}], "version": 2}', "an entry without an id"),
        (json.dumps({"models": [OTHER_ENTRY, OTHER_ENTRY], "version": 2}), "or twice"),
    ],
)
def test_an_index_that_is_not_valid_is_refused_and_left_alone(tmp_path: Path, content: str, words: str) -> None:
    source, cache = _published(tmp_path / "source"), tmp_path / "cache"
    cache.mkdir()
    (cache / INDEX).write_text(content)

    with pytest.raises(BadArtifact, match=words):
        install_into_cache(source, cache, "support-int4", 1)

    assert (cache / INDEX).read_text() == content
    assert list((cache / "olivepress").iterdir()) == []


def test_a_version_that_somebody_registered_elsewhere_is_not_taken_over(tmp_path: Path) -> None:
    source, cache = _published(tmp_path / "source"), tmp_path / "cache"
    own = _published(tmp_path / "by-hand")
    cache.mkdir()
    entry = {"model_info": {"id": "support-int4:1"}, "model_path": str(own)}
    (cache / INDEX).write_text(json.dumps({"models": [entry], "version": 2}))

    with pytest.raises(BadArtifact, match="unregister that one"):
        install_into_cache(source, cache, "support-int4", 1)


def test_an_entry_that_leads_nowhere_is_pointed_to_the_new_place(tmp_path: Path) -> None:
    source, cache = _published(tmp_path / "source"), tmp_path / "cache"
    install_into_cache(source, cache, "support-int4", 1)

    moved = cache.rename(tmp_path / "moved")
    installed = install_into_cache(source, moved, "support-int4", 1)

    assert _index(moved)["support-int4:1"]["model_path"] == str(installed.directory)


def test_a_folder_that_declares_the_same_version_is_refused(tmp_path: Path) -> None:
    source, cache = _published(tmp_path / "source"), tmp_path / "cache"
    _published(cache / "by-hand" / "copy")

    with pytest.raises(BadArtifact, match="declares itself to be support-int4:1 too"):
        install_into_cache(source, cache, "support-int4", 1)


def test_what_a_killed_install_left_is_swept(tmp_path: Path) -> None:
    source, cache = _published(tmp_path / "source"), tmp_path / "cache"
    for left in (".support-int4-1.new-123", ".support-int4-1.old-123"):
        _published(cache / "olivepress" / left)
        (cache / "olivepress" / left / "download.tmp").touch()

    install_into_cache(source, cache, "support-int4", 1)

    assert sorted(path.name for path in (cache / "olivepress").iterdir()) == [".support-int4-1.lock", "support-int4-1"]


def test_the_index_is_not_written_while_the_runtime_holds_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cache = _published(tmp_path / "source"), tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(foundry_index, "INDEX_WAIT_S", 0.1)

    with exclusive(cache / "foundry.local.modelinfo.lock", wait_s=0, what="the index"):
        with pytest.raises(ServiceUnavailable, match="in use by another process"):
            install_into_cache(source, cache, "support-int4", 1)

    assert not (cache / INDEX).exists()


def test_installs_at_the_same_time_all_get_their_entry(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    sources = {number: _published(tmp_path / f"v{number}", f"support-int4:{number}") for number in range(1, 9)}
    threads = [
        threading.Thread(target=install_into_cache, args=(source, cache, "support-int4", number))
        for number, source in sources.items()
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(_index(cache)) == {f"support-int4:{number}" for number in sources}


def test_a_cache_that_is_a_file_is_refused_in_words(tmp_path: Path) -> None:
    source = _published(tmp_path / "source")
    (tmp_path / "cache").touch()

    with pytest.raises(NotAllowed, match="choose a cache directory of your own"):
        install_into_cache(source, tmp_path / "cache", "support-int4", 1)


def test_a_full_disk_is_said_in_words(tmp_path: Path) -> None:
    def full(directory: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFull, match="free some disk space"):
        install_into_cache(full, tmp_path / "cache", "support-int4", 1)

    assert [path.name for path in (tmp_path / "cache" / "olivepress").iterdir()] == [".support-int4-1.lock"]

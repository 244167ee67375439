"""A manifest names its artifact, and what it lists can be laid out on every platform or is refused."""

import contextlib
import hashlib
import json
import ntpath
import sys
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from olivepress.errors import BadArtifact, NotFound
from olivepress.store import Chunk, FileEntry, Manifest

A, B = hashlib.sha256(b"a").hexdigest(), hashlib.sha256(b"b").hexdigest()
AB = hashlib.sha256(b"ab").hexdigest()
NOTHING = hashlib.sha256(b"").hexdigest()


def entry(path: str) -> FileEntry:
    return FileEntry(path, 1, A, (Chunk(A, 1),))


def document(**changes: object) -> dict[str, object]:
    """A good manifest with one file of two chunks, with changes to that file."""
    file = {"path": "model.onnx", "size_bytes": 2, "sha256": AB, "chunks": [[A, 1], [B, 1]]}
    return {"schema_version": 1, "files": [file | changes]}


def encoded(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def test_a_manifest_is_read_back_as_it_was_written() -> None:
    manifest = Manifest.of([entry("model.onnx"), FileEntry("empty", 0, NOTHING, ())])
    assert Manifest.parse(manifest.to_json()) == manifest
    assert manifest.digest == hashlib.sha256(manifest.to_json()).hexdigest()


def test_the_order_in_which_files_are_found_does_not_change_the_digest() -> None:
    one, other = [entry("b/x"), entry("a"), entry("b.txt")], [entry("a"), entry("b.txt"), entry("b/x")]
    assert Manifest.of(one).digest == Manifest.of(other).digest


def test_the_canonical_form_never_changes_for_it_names_every_stored_artifact() -> None:
    assert (
        Manifest.parse(encoded(document())).to_json()
        == (
            f'{{"files":[{{"chunks":[["{A}",1],["{B}",1]],"path":"model.onnx","sha256":"{AB}","size_bytes":2}}],'
            '"schema_version":1}'
        ).encode()
    )


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "/etc/passwd",
        "../x",
        "a/../x",
        "a/./x",
        "a//x",
        "a/",
        "C:x",
        "a\\x",
        "a\x00",
        "a\nb",
        "what?",
        "a ",
        "a.",
        "a /x",
        "con",
        "Aux.json",
        "nul .txt",
        "dir/COM1.bin",
        "lpt¹",
        "\ud800",
        "x" * 256,
        "é" * 128,
        "/".join(["x" * 200] * 6),
    ],
)
def test_a_path_that_leaves_the_artifact_or_is_illegal_somewhere_is_refused(path: str) -> None:
    with pytest.raises(BadArtifact):
        Manifest.of([entry(path)])
    with pytest.raises(BadArtifact):
        Manifest.parse(encoded(document(path=path)))


@pytest.mark.parametrize(
    "path", ["a", ".config", "console.txt", "a b/ç.json", "com10", "aux-1", "x" * 255, "模型.onnx"]
)
def test_an_ordinary_path_is_accepted(path: str) -> None:
    assert Manifest.of([entry(path)]).file(path).path == path


@pytest.mark.parametrize(
    "paths",
    [
        ("a", "a"),
        ("a", "A"),
        ("straße", "STRASSE"),
        ("\u00e9", "e\u0301"),
        ("a", "a/b"),
        ("A", "a/b"),
        ("A/x", "a/y"),
    ],
)
def test_paths_that_a_file_system_would_mix_up_are_refused(paths: tuple[str, str]) -> None:
    with pytest.raises(BadArtifact):
        Manifest.of(entry(path) for path in paths)


@pytest.mark.parametrize(
    "value",
    [
        document(size_bytes=3),
        document(size_bytes=True, chunks=[[A, 1]], sha256=A),
        document(size_bytes=2.0),
        document(size_bytes="2"),
        document(sha256=AB.upper()),
        document(sha256="../" + AB),
        document(sha256=AB + "\n"),
        document(sha256=None),
        document(chunks=[["zz", 2]]),
        document(chunks=[[AB, 2, 0]]),
        document(chunks=[[A, 0], [B, 2]]),
        document(chunks=[[A, -1], [B, 3]]),
        document(chunks=[[AB, 2**30]], size_bytes=2**30),
        document(chunks=[[A, 2]]),
        document(chunks=[], size_bytes=0),
        document(mode=0o777),
        document(chunks=None),
        {"schema_version": 2, "files": document()["files"]},
        {"files": document()["files"]},
        {"schema_version": 1, "files": {}},
        {"schema_version": 1, "files": [entry("b").path]},
        [],
        1,
        None,
    ],
)
def test_a_manifest_with_anything_wrong_in_it_is_refused(value: object) -> None:
    assert Manifest.parse(encoded(document()))
    with pytest.raises(BadArtifact):
        Manifest.parse(encoded(value))


def test_only_the_canonical_spelling_is_accepted_for_one_artifact_has_one_digest() -> None:
    good = encoded(document())
    repeated_key = good.replace(b'"path":', b'"path":"other","path":')
    for content in (b" " + good, good.replace(b"1]", b"1.0]"), repeated_key, b"", b"\xff", b"[" * 100_000):
        with pytest.raises(BadArtifact):
            Manifest.parse(content)


def test_files_out_of_order_are_refused() -> None:
    with pytest.raises(BadArtifact, match="not sorted"):
        Manifest((entry("b"), entry("a")))


def test_a_file_that_the_artifact_does_not_have_is_not_found() -> None:
    with pytest.raises(NotFound, match=r"has no file 'weights\.bin'"):
        Manifest.of([entry("a")]).file("weights.bin")


@settings(deadline=None)
@given(st.binary())
def test_no_bytes_make_the_parser_raise_anything_but_a_bad_artifact(content: bytes) -> None:
    with contextlib.suppress(BadArtifact):
        Manifest.parse(content)


def is_reserved(path: str) -> bool:
    """What Python knows of Windows' devices, as a second opinion."""
    if sys.version_info >= (3, 13):
        return ntpath.isreserved(path)
    return PureWindowsPath(path).is_reserved()


HOSTILE = st.lists(st.sampled_from(["a", "B", "..", ".", "", "/", "\\", ":", "nul", " ", "é", "x.y"]), max_size=6)


@settings(deadline=None)
@given(st.lists(st.one_of(st.text(max_size=12), HOSTILE.map("".join)), max_size=4))
def test_whatever_is_accepted_stays_inside_on_every_platform_and_keeps_its_identity(paths: list[str]) -> None:
    try:
        manifest = Manifest.of(entry(path) for path in paths)
    except BadArtifact:
        return
    assert Manifest.parse(manifest.to_json()) == manifest
    for file in manifest.files:
        windows = PureWindowsPath("C:/store") / file.path
        assert windows.is_relative_to("C:/store") and ".." not in windows.parts and not is_reserved(file.path)
        assert PurePosixPath(file.path).as_posix() == file.path and not Path(file.path).is_absolute()

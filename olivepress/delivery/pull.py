"""Pulls a model version to a directory of this machine, over the API; see `fetching.py` for what it survives."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from olivepress.client import Client, OnBytes
from olivepress.delivery.fetching import Fetch, discard, held, right_chunks
from olivepress.errors import BadArtifact, PermanentError
from olivepress.evidence.trust import Trust, remote_content
from olivepress.foundry.inference_model import declared_id
from olivepress.store.manifest import Manifest

Json = dict[str, Any]


@dataclass(frozen=True)
class Pulled:
    """A version that is on this machine now."""

    version: str
    directory: Path
    total_bytes: int
    received_bytes: int
    """What came over the network; the rest was here."""
    was_there: bool = False
    """Whether it was complete before, and no file was written."""


def pull(
    client: Client,
    version: Json,
    target: Path,
    *,
    replace: bool = False,
    trust: Trust | None = None,
    on_bytes: OnBytes | None = None,
    sleep: Callable[[float], object] | None = None,
) -> Pulled:
    """Pull a version (as `Client.version` gave it) to the directory `target`, which appears whole or not at all.

    Another version in `target`, and those of the same model beside it, give the chunks that they have.

    Args:
        replace: whether what is in `target` may go.
        trust: what is believed of the stack; then the signature is verified before anything is downloaded.

    Raises:
        PermanentError: `target` holds something else, and `replace` is not set.
        BadArtifact: content arrived damaged again and again, or is not what was signed.
        UntrustedKey: it is signed by a key that is not known to be the stack's.
        DiskFull: no room beside the target.
        ServiceUnavailable: the API does not answer for about a minute, or another process pulls to `target`.
    """
    target = target.expanduser().absolute()
    manifest = client.artifact_manifest(version)
    if trust is not None:
        trust.check(remote_content(client, version, manifest), version)
    there = Pulled(version["version"], target, manifest.size_bytes, 0, was_there=True)
    if _is_there(version, manifest, target, replace=replace):
        return there
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    with held(partial, version["version"]):
        # Once more: another pull may have come to its end between the look and the lock.
        if _is_there(version, manifest, target, replace=replace, unfinished=partial):
            return there
        reuse = [target, *sorted(_siblings(target, version["model"]))]
        fetch = Fetch(client, version, manifest, partial, on_bytes, sleep)
        fetch.run(reuse)
        _swap(partial / "files", target)
        discard(partial)
    return Pulled(version["version"], target, manifest.size_bytes, fetch.received_bytes)


def _is_there(
    version: Json, manifest: Manifest, target: Path, *, replace: bool, unfinished: Path | None = None
) -> bool:
    """Whether there is nothing to do.

    Args:
        unfinished: the caller's own state, which then goes if nothing is in it.

    Raises: PermanentError (the target holds something else that may not go).
    """
    if not os.path.lexists(target):
        return False
    is_whole = target.is_dir() and _is_whole(target, manifest)
    if (is_whole or not replace) and unfinished is not None and not (unfinished / "files").exists():
        discard(unfinished)
    if not is_whole and not replace:
        raise PermanentError(
            f"{target} holds {_what_it_is(target)}; with --replace {version['version']} takes its place, or choose "
            "another directory"
        )
    return is_whole


def _is_whole(directory: Path, manifest: Manifest) -> bool:
    """Whether a directory holds exactly these files."""
    paths = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}
    return paths == {file.path for file in manifest.files} and all(
        not (path := directory / file.path).is_symlink()
        and path.stat().st_size == file.size_bytes
        and all(right_chunks(path, file))
        for file in manifest.files
    )


def _siblings(target: Path, model: str) -> Iterator[Path]:
    """Directories beside the target that declare themselves to be versions of this model."""
    for directory in target.parent.iterdir():
        with contextlib.suppress(BadArtifact, OSError):
            if directory.is_dir() and directory != target and declared_id(directory).partition(":")[0] == model:
                yield directory


def _what_it_is(target: Path) -> str:
    with contextlib.suppress(BadArtifact, OSError):
        return declared_id(target)
    return "something else"


def _swap(files: Path, target: Path) -> None:
    """Rename `files` to `target`; what is there goes aside first, for a directory is not replaced in one go."""
    old = target.with_name(f".{target.name}.old")
    _remove(old)
    if os.path.lexists(target):
        target.rename(old)
    files.rename(target)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

"""`olivepress verify`: is a version on this machine, or a later report of one, what its publisher signed?"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from olivepress.cli.options import AsJson
from olivepress.cli.output import connect, download_bar, emit, say
from olivepress.cli.report import FILE_SUFFIX as REPORT_SUFFIX
from olivepress.cli.report import read_report
from olivepress.delivery import archive
from olivepress.errors import BadArtifact, BadManifest, NotFound
from olivepress.evidence.document import EVIDENCE_FILE
from olivepress.evidence.known_keys import KnownKey, KnownKeys
from olivepress.evidence.report_seal import verify_report
from olivepress.evidence.signing import PublicKey
from olivepress.evidence.trust import Trust
from olivepress.evidence.verification import (
    Check,
    FindKey,
    Verification,
    archive_content,
    directory_content,
    printable,
)
from olivepress.evidence.verification import verify as verify_content
from olivepress.foundry.inference_model import SUMS_FILE

VERIFIED, WRONG, KEY_UNKNOWN = 0, 1, 5
MARKS = (SUMS_FILE, EVIDENCE_FILE)
WIDTH = max(len(check) for check in Check)


def verify(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="DIR|FILE", help="A version that was pulled or installed, its archive, or a report of a validation."
        ),
    ],
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="The publisher's public key in PEM; no other counts.")
    ] = None,
    stack: Annotated[
        bool, typer.Option("--stack", help="Ask the stack for its keys, and rely on them as `olivepress pull` does.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Verify a version's files and its signature, offline.

    Every file against its SHA-256 in SHA256SUMS and in the signed evidence, none missing, none added; the signature
    against the keys that this machine knows; provenance and report against the digests that were signed. What a later
    validation measured is signed by itself: a file that `olivepress report --job ID --json` wrote.

    [bold]Examples[/]
      olivepress verify ./support-en
      olivepress verify ~/.foundry/cache/models/olivepress/support-en-int4-3
      olivepress verify support-en.tar --key publisher.pem --json
      olivepress report --job 12 --json > later.json && olivepress verify later.json

    [bold]Exit codes[/]
      0 verified             1 something is not as it was signed, nothing is signed, or it cannot be read
      3 with --stack: it does not answer
      4 no version is there  5 all is right, but by a key that this machine does not know
    """
    if key is not None and stack:
        raise BadManifest("say whose key counts: either --key FILE or --stack")
    # Before gigabytes are read.
    pinned = PublicKey.from_pem_file(key) if key else None
    known = KnownKeys.default()
    found = _verified(path, pinned, known, stack)
    # A list of keys that cannot be read is nobody's business where the key is given.
    entry = known.find(found.evidence.key_id) if found.evidence and not key else None
    if as_json:
        emit(_document(path, found) | {"key_known_for": entry.stack if entry else None})
    else:
        _show(path, found, entry)
        if found.wants_only_the_key:
            say(_about_key(found, known) if not key else "all that is signed agrees, by another key than --key has")
        elif found.is_unsigned:
            say("the files agree with SHA256SUMS; who published them is not said by anybody")
    raise typer.Exit(VERIFIED if found.is_verified else KEY_UNKNOWN if found.wants_only_the_key else WRONG)


def _verified(path: Path, pinned: PublicKey | None, known: KnownKeys, stack: bool) -> Verification:
    if not path.exists():
        raise NotFound(f"there is no {path}; give the directory or the archive of a version")
    if path.suffix == REPORT_SUFFIX and not path.is_dir():
        check = partial(verify_report, read_report(path))
    else:
        if path.is_dir():
            _check_is_version(path)
        with download_bar(path.name) as show:
            read = directory_content(path, show) if path.is_dir() else archive_content(_archive(path), show)
        check = partial(verify_content, read)
    if stack:
        with connect() as client:
            return check(Trust.of(client, say).key)
    return check(_only(pinned) if pinned else _any_of(known))


def _about_key(found: Verification, known: KnownKeys) -> str:
    if found.evidence and found.evidence.key_id in known.distrusted():
        return "this machine was told to distrust that key (`olivepress keys distrust`): do not use what it signed"
    return "all that is signed agrees; if you know the publisher's key, give it: --key FILE, or --stack"


def _check_is_version(path: Path) -> None:
    if any((path / name).exists() for name in MARKS):
        return
    inside = sorted(child for child in path.iterdir() if any((child / name).exists() for name in MARKS))
    instead = f"it has one in it: olivepress verify {inside[0]}" if inside else "give the directory that `pull` made"
    raise NotFound(f"{path} is not the directory of a version, it has neither {' nor '.join(MARKS)}; {instead}")


def _archive(path: Path) -> archive.Archive:
    try:
        return archive.read_archive(path)
    except BadArtifact:
        say("only what `olivepress export` wrote is verified as a file; unpack any other and verify the directory")
        raise


def _only(pinned: PublicKey) -> FindKey:
    return lambda key_id: pinned if pinned.id == key_id else None


def _any_of(known: KnownKeys) -> FindKey:
    def find(key_id: str) -> PublicKey | None:
        entry = known.find(key_id)
        return entry.key if entry else None

    return find


def _show(path: Path, found: Verification, known: KnownKey | None) -> None:
    what = f"{found.evidence.version} of team {found.evidence.team}" if found.evidence else str(path)
    verdict = "verified" if found.is_verified else "NOT VERIFIED"
    for finding in found.findings:
        word = "right" if finding.is_right else "WRONG"
        if finding.check is Check.SIGNATURE and found.wants_only_the_key:
            word = "?"
        typer.echo(printable(f"  {finding.check:{WIDTH}}  {word:5}  {finding.detail}"))
    whose = f", by the key of {known.stack}" if known and found.is_verified else ""
    typer.echo(printable(f"{what}: {verdict}{whose}"))


def _document(path: Path, found: Verification) -> dict[str, Any]:
    evidence = found.evidence
    return {
        "path": str(path),
        "is_verified": found.is_verified,
        "team": evidence.team if evidence else None,
        "version": evidence.version if evidence else None,
        "signed_at": evidence.signed_at if evidence else None,
        "key_id": evidence.key_id if evidence else None,
        "findings": [
            {"check": finding.check.value, "is_right": finding.is_right, "detail": finding.detail}
            for finding in found.findings
        ],
    }

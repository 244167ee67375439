"""Use case: find damage in the store, say whom it hurts, and heal it.

Healing tries, in this order: another copy of the same content (trash, quarantine, another store, the same file cut
otherwise), what the database knows (files that publishing derives from it), and a new run of the steps, whose keys are
known. The last one is a job of its own: pure steps give the same bytes, so its chunks come to lie where the lost ones
were. Whether they did, the next check sees.

A check only reads, beside everything else. Healing holds the lease of retention, so nothing is collected meanwhile.
"""

import contextlib
import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from olivepress.database import damage as rows
from olivepress.database import retention as references
from olivepress.database import store_checks
from olivepress.database.damage import NeededStep, NeededVersion, NoRepair, Source
from olivepress.database.sessions import Database
from olivepress.errors import BadArtifact, NotFound
from olivepress.evidence.document import PROVENANCE_FILE, REPORT_FILE, UNSIGNED_FILES, provenance_file, report_file
from olivepress.foundry.inference_model import INFERENCE_MODEL_FILE, SUMS_FILE, sums_text
from olivepress.retention import LEASE, Turn
from olivepress.store import FileEntry, Manifest, Store, collector_of, keeper_of
from olivepress.store.artifacts import sha256_of
from olivepress.store.checking import Checker, Scan
from olivepress.store.collecting import NONE, Amount
from olivepress.store.healing import Healed, Healer, Outcome
from olivepress.store.keeping import Keeper, Part
from olivepress.store.places import UNREADABLE
from olivepress.store.protocol import Progress

CHECK_LEASE = "store-check"
OVERLAY_FILES = UNSIGNED_FILES | {INFERENCE_MODEL_FILE, PROVENANCE_FILE, REPORT_FILE, SUMS_FILE}


class Fate(StrEnum):
    """What is to become of a version that was hurt."""

    HURT = "hurt"
    """Found, and nothing was done."""
    WHOLE = "whole"
    """Healed, or an earlier damage is gone."""
    QUEUED = "queued"
    """A job makes its content again."""
    LOST = "lost"


@dataclass(frozen=True)
class HurtVersion:
    """A version with damage, and what becomes of it."""

    version: NeededVersion
    fate: Fate
    files: tuple[str, ...] = ()
    job_id: int | None = None
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "version": self.version.name,
            "team": self.version.team,
            "aliases": list(self.version.aliases),
            "fate": self.fate.value,
            "files": list(self.files),
            "job_id": self.job_id,
            "note": self.note,
        }


@dataclass(frozen=True)
class HurtSource:
    """What the source of versions said, which is lost, and what becomes of it. The versions themselves are whole."""

    source: Source
    versions: tuple[str, ...]
    fate: Fate = Fate.HURT
    job_id: int | None = None
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "versions": list(self.versions),
            "fate": self.fate.value,
            "job_id": self.job_id,
            "note": self.note,
        }


@dataclass
class Report:
    """What a check found and did."""

    store: str
    is_fast: bool
    scan: Scan
    absent: list[str] = field(default_factory=list)
    """Digests of artifacts that the database needs and the store has no manifest of."""
    healed: list[Healed] = field(default_factory=list)
    versions: list[HurtVersion] = field(default_factory=list)
    steps: list[NeededStep] = field(default_factory=list)
    """Of unfinished jobs, whose artifact is hurt: their jobs are going to fail."""
    forgotten: int = 0
    """Remembered results whose artifact is hurt or gone: they count as misses."""
    sources: list[HurtSource] = field(default_factory=list)
    """What is lost of what sources said: versions that are measured again are not held against it meanwhile."""
    set_aside: int = 0
    """Lost artifacts that only memory needed, or nobody: taken out of use."""
    unreferenced: Amount = NONE
    """Artifacts that nothing refers to, and the bytes of their files."""
    temporary: Amount = NONE
    trash: Amount = NONE
    quarantined: int = 0

    @property
    def is_sound(self) -> bool:
        """Whether everything that somebody needs is there and whole, and nothing damaged is left in use."""
        left = any(each.outcome is Outcome.FOUND for each in self.healed)
        return not left and all(each.fate is Fate.WHOLE for each in self.versions) and not self.steps

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "schema_version": 1,
            "store": self.store,
            "fast": self.is_fast,
            "sound": self.is_sound,
            "artifacts": len(self.scan.artifacts),
            "chunks": _amount(self.scan.chunks),
            "read_bytes": self.scan.read_bytes,
            "resumed_bytes": self.scan.resumed_bytes,
            "damage": [self._damage(each) for each in self.healed],
            "absent_artifacts": self.absent,
            "versions": [each.to_dict() for each in self.versions],
            "unfinished_jobs": sorted({each.job_id for each in self.steps}),
            "forgotten_results": self.forgotten,
            "sources": [each.to_dict() for each in self.sources],
            "set_aside": self.set_aside,
            "unreferenced": {"artifacts": _amount(self.unreferenced), "chunks": _amount(self.scan.strays)},
            "temporary": _amount(self.temporary),
            "trash": _amount(self.trash),
            "quarantined": self.quarantined,
        }

    def _damage(self, each: Healed) -> dict[str, Any]:
        part = each.finding.part
        return {
            "sha256": part.sha256,
            "kind": "manifest" if part.is_manifest else "chunk",
            "damage": each.finding.damage.value,
            "outcome": each.outcome.value,
            "source": each.source,
            "files": [{"artifact": use.digest, "path": use.path} for use in self.scan.uses.get(part.sha256, [])],
        }


def check(
    database: Database,
    store: Store,
    *,
    is_fast: bool = False,
    anew: bool = False,
    on_progress: Progress | None = None,
    must_stop: Callable[[], bool] = lambda: False,
) -> Report:
    """Look for damage; changes nothing in the store, takes flags off versions that turn out whole, notes the report.

    Raises:
        TransientError: another check is under way.
        ServiceUnavailable: the database or the bucket does not answer.
    """
    turn = Turn(database, must_stop, CHECK_LEASE)
    try:
        keeper = keeper_of(store)
        report = _checked(database, keeper, Checker(keeper, is_fast, on_progress, turn.go_on), anew)
        _keep(database, report)
        return report
    finally:
        turn.give_back()


def repair(
    database: Database,
    store: Store,
    others: Iterable[Store] = (),
    *,
    is_fast: bool = False,
    anew: bool = False,
    on_progress: Progress | None = None,
    must_stop: Callable[[], bool] = lambda: False,
) -> Report:
    """Look for damage, heal what can be healed, queue jobs for the rest and flag the versions that are hurt.

    Args:
        others: stores that may have the same content.

    Raises:
        TransientError: another check is under way, or retention is: nothing was changed then.
        ServiceUnavailable: the database or a bucket does not answer.
        DiskFull: no room for what is healed.
    """
    checking = Turn(database, must_stop, CHECK_LEASE)
    try:
        keeper = keeper_of(store)
        report = _checked(database, keeper, Checker(keeper, is_fast, on_progress, checking.go_on), anew)
        turn = Turn(database, must_stop, LEASE)

        def go_on() -> None:
            checking.go_on()
            turn.go_on()

        try:
            _heal(database, keeper, [keeper_of(other) for other in others], report, go_on)
        finally:
            turn.give_back()
        _keep(database, report)
        return report
    finally:
        checking.give_back()


def _checked(database: Database, keeper: Keeper, checker: Checker, anew: bool) -> Report:
    scan = checker.run(anew=anew)
    report = Report(keeper.store.name, checker.is_fast, scan)
    report.healed = [Healed(finding, Outcome.FOUND) for finding in scan.findings]
    with database.read() as session:
        versions, steps = rows.needed_versions(session), rows.needed_steps(session)
        remembered, sources = rows.remembered_artifacts(session), rows.sources(session)
        referenced = references.references(session, None)
    damaged = {finding.part.sha256 for finding in scan.findings}

    def is_absent(digest: str) -> bool:
        # Asked again: it may have been put after the manifests were listed.
        return digest not in scan.artifacts and digest not in damaged and not _is_there(keeper, digest)

    absent = {digest for digest in referenced if is_absent(digest)}
    hurt = {digest: tuple(paths) for digest, paths in scan.hurt.items()} | dict.fromkeys(absent, ())
    needed = {digest for each in versions for digest in (each.package_digest, each.artifact_digest)}
    wanted = needed | {each.artifact_digest for each in steps} | {each.artifact_digest for each in sources}
    report.absent = sorted(absent & wanted)
    report.forgotten = len(remembered & hurt.keys() - needed)
    report.steps = [each for each in steps if each.artifact_digest in hurt]
    report.sources = _hurt_sources([each for each in sources if each.artifact_digest in hurt])
    for version in versions:
        files = [hurt[digest] for digest in (version.package_digest, version.artifact_digest) if digest in hurt]
        if files:
            report.versions.append(
                HurtVersion(version, Fate.HURT, tuple(sorted({path for some in files for path in some})))
            )
        elif version.is_flagged and not checker.is_fast:
            _note(database, version, None)
            report.versions.append(
                HurtVersion(version, Fate.WHOLE, note="the damage that an earlier check found is gone")
            )
    sizes = [size for digest, size in scan.artifacts.items() if digest not in referenced]
    report.unreferenced = Amount(len(sizes), sum(sizes))
    collector = collector_of(keeper.store)
    report.temporary, report.trash, report.quarantined = collector.temporary(), collector.trash(), keeper.quarantined()
    return report


def _heal(database: Database, keeper: Keeper, others: list[Keeper], report: Report, go_on: Callable[[], None]) -> None:
    known = _known_contents(database, keeper, report.versions)
    report.healed = Healer(keeper, others, known, go_on).heal(report.scan, report.absent)
    report.set_aside = _set_aside(keeper, report)
    report.versions = [
        each if each.fate is Fate.WHOLE else _decided(database, keeper, each) for each in report.versions
    ]
    report.sources = [_source_decided(database, keeper, each) for each in report.sources]
    report.steps = [each for each in report.steps if not keeper.store.has(each.artifact_digest)]
    report.quarantined = keeper.quarantined()


def _set_aside(keeper: Keeper, report: Report) -> int:
    """Takes lost artifacts out of use that only memory, or nobody, needs: their keys are misses then."""
    needed = {each.artifact_digest for each in report.steps}
    needed |= {
        digest for each in report.versions for digest in (each.version.package_digest, each.version.artifact_digest)
    }
    unneeded = (digest for digest, files in report.scan.hurt.items() if files and digest not in needed)
    return sum(keeper.set_aside(digest) for digest in unneeded if not keeper.store.has(digest))


def _decided(database: Database, keeper: Keeper, hurt: HurtVersion) -> HurtVersion:
    """What is to become of a version now that all copies were looked at."""
    version = hurt.version
    has_package, has_artifact = (keeper.store.has(each) for each in (version.package_digest, version.artifact_digest))
    if has_package and has_artifact:
        _note(database, version, None)
        return HurtVersion(version, Fate.WHOLE, hurt.files)
    if has_package or not _has_overlay(keeper, version):
        why = f"files that only publishing writes; delete {version.name} and submit its checkpoint as a new version"
        return _lost(database, hurt, why)
    with database.write() as session:
        made = rows.queue_repair(session, version)
        if not isinstance(made, NoRepair):
            rows.note_damage(session, version, f"content is damaged; job {made.job_id} makes it again")
    if isinstance(made, NoRepair):
        return _lost(database, hurt, made.why)
    return HurtVersion(version, Fate.QUEUED, hurt.files, made.job_id, made.note)


def _hurt_sources(sources: list[Source]) -> list[HurtSource]:
    """Each artifact once, with the versions that it is for."""
    versions: dict[str, set[str]] = {}
    for each in sources:
        versions.setdefault(each.artifact_digest, set()).add(each.version)
    first = {each.artifact_digest: each for each in reversed(sources)}
    return [HurtSource(first[digest], tuple(sorted(names))) for digest, names in versions.items()]


def _source_decided(database: Database, keeper: Keeper, hurt: HurtSource) -> HurtSource:
    """What is to become of it now that all copies were looked at. Its checkpoint may be gone tomorrow."""
    if keeper.store.has(hurt.source.artifact_digest):
        return replace(hurt, fate=Fate.WHOLE)
    with database.write() as session:
        made = rows.queue_source_repair(session, hurt.source)
    if isinstance(made, NoRepair):
        return replace(hurt, fate=Fate.LOST, note=made.why)
    return replace(hurt, fate=Fate.QUEUED, job_id=made.job_id, note=made.note)


def _lost(database: Database, hurt: HurtVersion, why: str) -> HurtVersion:
    _note(database, hurt.version, f"content is damaged or lost: {why}")
    return HurtVersion(hurt.version, Fate.LOST, hurt.files, note=why)


def _has_overlay(keeper: Keeper, version: NeededVersion) -> bool:
    """Whether a version is whole as soon as its package is: what publishing added to that is there."""
    try:
        published = keeper.store.manifest(version.artifact_digest)
    except (BadArtifact, NotFound):
        return False
    return not keeper.store.missing(frozenset(chunk for file in _overlay(published) for chunk in file.chunks))


def _known_contents(database: Database, keeper: Keeper, versions: list[HurtVersion]) -> dict[str, bytes]:
    """By SHA-256: what of hurt versions can be told from what is left of them and from the database."""
    known: list[bytes] = []
    for version in (hurt.version for hurt in versions):
        with database.read() as session:
            provenance, report = rows.provenance_and_report(session, version.id)
        known += [provenance_file(provenance, version.model, version.number), report_file(report)]
        with contextlib.suppress(BadArtifact, NotFound):
            published = keeper.store.manifest(version.artifact_digest)
            listed = {
                file.path: file.sha256 for file in published.files if file.path not in UNSIGNED_FILES | {SUMS_FILE}
            }
            known.append(sums_text(listed).encode())
            overlay = _overlay(published)
            known.append(Manifest.of(file for file in published.files if file not in overlay).to_json())
    return {sha256_of(content): content for content in known}


def _overlay(published: Manifest) -> list[FileEntry]:
    """The files of a version that its package does not have."""
    return [file for file in published.files if file.path in OVERLAY_FILES]


def _keep(database: Database, report: Report) -> None:
    """For those who cannot look into the store."""
    with database.write() as session:
        store_checks.note(session, report.to_dict())


def _note(database: Database, version: NeededVersion, reason: str | None) -> None:
    with database.write() as session:
        rows.note_damage(session, version, reason)


def _is_there(keeper: Keeper, digest: str) -> bool:
    try:
        return keeper.is_right(Part(digest, True))
    except OSError as error:
        if error.errno not in UNREADABLE | {errno.ENOENT}:
            raise
        return False


def _amount(found: Amount) -> dict[str, int]:
    return {"count": found.count, "size_bytes": found.size_bytes}

"""Use case: is what a stack hands out signed by a key that this machine relies on for that stack?"""

import base64
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from olivepress.client import Client
from olivepress.errors import BadArtifact, NotFound, PermanentError, UntrustedKey
from olivepress.evidence.known_keys import KnownKeys, local_stack
from olivepress.evidence.signing import PublicKey
from olivepress.evidence.verification import SMALL_BYTES, Content, Verification, verify
from olivepress.store.manifest import Manifest

Json = dict[str, Any]
Tell = Callable[[str], object]


@dataclass
class Trust:
    """What this machine believes of one stack.

    Args:
        stack: the address or the data directory under which its keys are known.
        is_local: it runs here under this user, who could write its key file anyway: its keys are believed.
        tell: is told in a line what a person should know.
    """

    client: Client
    known: KnownKeys
    stack: str
    is_local: bool = False
    tell: Tell = field(default=lambda line: None)

    @classmethod
    def of(cls, client: Client, tell: Tell = lambda line: None) -> "Trust":
        """With the known keys of this user."""
        local = local_stack(client.url)
        return cls(client, KnownKeys.default(), str(local) if local else client.url, local is not None, tell)

    def check(self, content: Content, version: Mapping[str, Any]) -> None:
        """Hold a version (as `Client.version` gave it) against its evidence before it is used.

        One that was published unsigned passes, and that is told: it may be older than the stack's key.

        Raises:
            BadArtifact: what was signed is something else.
            UntrustedKey: it is signed by a key that is not this stack's, as far as this machine knows.
        """
        found = verify(content, self.key)
        if found.is_unsigned:
            known = f", although {self.stack} signs what it publishes now" if self.known.of(self.stack) else ""
            self.tell(f"{version['version']} is not signed{known}: only its checksums are verified")
            return
        evidence = found.evidence
        if not found.is_verified or evidence is None:
            raise _forged(version["version"], found)
        said = (evidence.team, evidence.model, evidence.number)
        if said != (version["team"], version["model"], version["number"]):
            raise BadArtifact(
                f"what came as {version['version']} of team '{version['team']}' was signed as {evidence.version} of "
                f"team '{evidence.team}'; nothing of it is used. Tell whoever runs the stack"
            )

    def key(self, key_id: str) -> PublicKey:
        """The key of this name, if it is one of this stack's: known, or believed now.

        Raises:
            UntrustedKey: it is not.
        """
        known, distrusted = self.known.of(self.stack), self.known.distrusted()
        if key_id in distrusted:
            raise _distrusted(key_id)
        if key_id in known:
            return known[key_id]
        offered = {name: key for name, key in _offered(self.client).items() if name not in distrusted}
        if key_id not in offered:
            raise UntrustedKey(
                f"the signature is by the key {key_id}, and {self.stack} does not say that this is its key; do not use "
                "what it signed, and tell whoever runs the stack"
            )
        was_met = any(entry.stack == self.stack for entry in self.known.all())
        if not was_met or self.is_local:
            for key in offered.values():
                self.known.add(self.stack, key.key)
            if not self.is_local:
                names = ", ".join(offered)
                self.tell(f"{self.stack} signs with the key {names}, seen for the first time and relied on from now on")
        elif _leads_to(key_id, offered, known):
            self.known.add(self.stack, offered[key_id].key)
            self.tell(f"{self.stack} signs with the new key {key_id}, to which its former key handed over")
        else:
            names = ", ".join(known) or "none"
            raise UntrustedKey(
                f"THE KEY OF {self.stack} HAS CHANGED: this machine knows {names}, and now it signs with "
                f"{key_id}, to which no known key handed over. Somebody may stand between you and the stack. Ask "
                f"whoever runs it whether {key_id} is its key; if it is: olivepress keys trust {key_id}"
            )
        return offered[key_id].key

    def accept(self, key_id: str) -> PublicKey:
        """Rely on a key that the stack offers, because a person says so.

        Raises:
            NotFound: it offers no such key.
        """
        offered = _offered(self.client)
        if key_id not in offered:
            has = f"it has {', '.join(offered)}" if offered else "it has published nothing that is signed"
            raise NotFound(f"{self.stack} has no key {key_id}; {has}")
        self.known.add(self.stack, offered[key_id].key)
        return offered[key_id].key

    def refuse(self, key_id: str) -> PublicKey:
        """Never rely on a key again, because a person says so: one that is known here, or that the stack offers.

        Raises:
            NotFound: it is neither.
        """
        for entry in self.known.all():
            if entry.id == key_id:
                self.known.distrust(entry.stack, entry.key)
                return entry.key
        offered = _offered(self.client)
        if key_id not in offered:
            raise NotFound(
                f"neither this machine nor {self.stack} knows a key {key_id}; `olivepress keys show` lists them"
            )
        self.known.distrust(self.stack, offered[key_id].key)
        return offered[key_id].key


def check_without_stack(content: Content, version: str, known: KnownKeys, tell: Tell) -> None:
    """Hold a version that came as a file against its evidence, as far as its key is known from any stack.

    One that is not signed, or by a key that is not known, passes, and that is told.

    Raises:
        BadArtifact: what was signed is something else.
        UntrustedKey: it is signed by a key that somebody said is not to be relied on.
    """

    def find(key_id: str) -> PublicKey | None:
        entry = known.find(key_id)
        return entry.key if entry else None

    found = verify(content, find)
    if found.evidence is not None and found.evidence.key_id in known.distrusted():
        raise _distrusted(found.evidence.key_id)
    if found.is_unsigned:
        tell(f"{version} is not signed: only its checksums are verified")
    elif found.wants_only_the_key and found.evidence is not None:
        tell(
            f"{version} is signed by the key {found.evidence.key_id}, which this machine does not know, so only "
            "checksums are verified; `olivepress verify --key FILE` verifies it with the publisher's key"
        )
    elif not found.is_verified or found.evidence is None:
        raise _forged(version, found)
    elif found.evidence.version != version:
        raise BadArtifact(f"what came as {version} was signed as {found.evidence.version}; nothing of it is used")


def remote_content(client: Client, version: Json, manifest: Manifest) -> Content:
    """The files of a version that is still with the stack, as its manifest says; what is read arrives verified."""
    files = {"files": [{"path": file.path, "sha256": file.sha256} for file in manifest.files]}
    sums = {file.path: file.sha256 for file in manifest.files}

    def read(path: str) -> bytes:
        if manifest.file(path).size_bytes > SMALL_BYTES:
            raise BadArtifact(f"{path} of {version['version']} is far larger than it may be; nothing of it is used")
        return client.read_file(version | files, path)

    return Content(sums, read)


def unpacked_content(directory: Path, manifest: Manifest) -> Content:
    """The files that were just written to a directory and verified against this manifest."""
    sums = {file.path: file.sha256 for file in manifest.files}
    return Content(sums, lambda path: (directory / path).read_bytes())


@dataclass(frozen=True)
class _Offered:
    """A key as the API tells it."""

    key: PublicKey
    endorsed_by: str | None
    endorsement: bytes


def _offered(client: Client) -> dict[str, _Offered]:
    """The stack's keys by id, the newest first; none of a stack that is older than signatures."""
    found = {}
    with contextlib.suppress(NotFound):
        for entry in client.signing_keys():
            try:
                key = PublicKey.from_text(entry["public_key"])
                endorsement = base64.b64decode(entry["endorsement"] or "")
                found[key.id] = _Offered(key, entry["endorsed_by"], endorsement)
            except (KeyError, TypeError, ValueError, PermanentError):
                # Whatever it is, it is no key to rely on.
                continue
    return found


def _leads_to(key_id: str, offered: Mapping[str, _Offered], known: Mapping[str, PublicKey]) -> bool:
    """Whether known keys handed over to this one, one after the other."""
    seen: set[str] = set()
    while key_id in offered and key_id not in seen:
        seen.add(key_id)
        this = offered[key_id]
        before = this.endorsed_by or ""
        if before in known:
            return this.key.is_endorsed(known[before], this.endorsement)
        if before not in offered or not this.key.is_endorsed(offered[before].key, this.endorsement):
            return False
        key_id = before
    return False


def _distrusted(key_id: str) -> UntrustedKey:
    return UntrustedKey(
        f"the signature is by the key {key_id}, which this machine was told to distrust (`olivepress keys distrust`); "
        "do not use what it signed, and ask whoever runs the stack to publish it again"
    )


def _forged(version: str, found: Verification) -> BadArtifact:
    return BadArtifact(
        f"{version} is not what its publisher signed ({found.complaints}); nothing of it is used. Tell whoever runs "
        "the stack"
    )

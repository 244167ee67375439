"""What the client asks of models and their versions, and how it reads the content of a version."""

import hashlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx

from olivepress import errors
from olivepress.client.transport import DEFAULT_TEAM, Json, Transport, without_none
from olivepress.errors import BadArtifact
from olivepress.registry import LATEST, VersionReference, VersionSearch
from olivepress.store.manifest import Manifest as ArtifactManifest

PAGE = 1000


class ModelCalls(Transport):
    """Models, their versions, and the content of those."""

    def models(self, team: str = DEFAULT_TEAM, search: VersionSearch | None = None) -> list[Json]:
        """All models of a team with their newest version and their aliases.

        A search gives those that have such versions; the number of versions and the newest are then of those.
        """
        found: list[Json] = []
        wanted = _search_params(search)
        while True:
            after = found[-1]["name"] if found else None
            page = self.list_of("/v1/models", team=team, limit=PAGE, after=after, **wanted)
            found += page
            if len(page) < PAGE:
                return found

    def model(self, name: str, team: str = DEFAULT_TEAM, search: VersionSearch | None = None) -> Json:
        """A model with its aliases and its versions, or those of them that are searched for.

        Raises:
            NotFound: the team has no such model.
        """
        params = without_none(team=team, **_search_params(search))
        return self.document("GET", model_place(name), params=params)

    def version(self, wanted: VersionReference, team: str = DEFAULT_TEAM) -> Json:
        """A version with its report, provenance and files.

        Raises:
            NotFound: the team has no such model, version or alias.
        """
        return self.document("GET", version_place(wanted), params={"team": team})

    def lineage(self, wanted: VersionReference, team: str = DEFAULT_TEAM) -> Json:
        """Where a version comes from (see olivepress.lineage); also one that is deleted.

        Raises:
            NotFound: the team has no such model, version or alias.
        """
        return self.document("GET", f"{version_place(wanted)}/lineage", params={"team": team})

    def descendants(self, digest: str, team: str = DEFAULT_TEAM) -> list[Json]:
        """All versions that came from a checkpoint, by its digest or the beginning of it."""
        found: list[Json] = []
        while True:
            after = found[-1]["id"] if found else None
            page = self.list_of("/v1/lineage", checkpoint=digest, team=team, limit=PAGE, after=after)
            found += page
            if len(page) < PAGE:
                return found

    def artifact_manifest(self, version: Json) -> ArtifactManifest:
        """The files of a version (as `version` gave it) and the chunks that they consist of, verified.

        Raises:
            BadArtifact: it arrived damaged, or lists what could not be laid out here.
        """
        content = self.answer("GET", f"{_place_of(version)}/manifest", params={"team": version["team"]}).content
        if hashlib.sha256(content).hexdigest() != version["artifact_digest"]:
            raise BadArtifact(f"the list of files of {version['version']} arrived damaged; try again")
        return ArtifactManifest.parse(content)

    def read_file(self, version: Json, path: str) -> bytes:
        """The content of a small file of a version (as `version` gave it), verified.

        Raises:
            NotFound: the version has no such file.
            BadArtifact: it arrived damaged.
            ServiceUnavailable: the connection broke.
        """
        entry = next((file for file in version["files"] if file["path"] == path), None)
        if entry is None:
            raise errors.NotFound(f"{version['version']} has no file '{path}'; submit its checkpoint again")
        return self.again(lambda: b"".join(self._verified(version, entry)))

    def read_range(self, version: Json, path: str, start: int, end: int) -> Iterator[bytes]:
        """The bytes of a file of a version from `start` up to `end`, as they arrive; the caller verifies them.

        Raises:
            NotFound: the version has no such file.
            ServiceUnavailable: the connection broke.
        """
        place = f"{_place_of(version)}/files/{quote(path)}"
        # Packed, its ranges would be others.
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        options: Any = {"params": {"team": version["team"]}, "headers": headers}
        with self.stream(place, **options) as response:
            # Something in between that knows no ranges sends all of it.
            unwanted = start if response.status_code == httpx.codes.OK else 0
            for block in response.iter_bytes():
                wanted = block[unwanted:]
                unwanted = max(0, unwanted - len(block))
                if wanted:
                    yield wanted

    def _verified(self, version: Json, entry: Json) -> Iterator[bytes]:
        """The content of a file; ends with BadArtifact unless it is what the manifest says."""
        place = f"{_place_of(version)}/files/{quote(entry['path'])}"
        digest = hashlib.sha256()
        with self.stream(place, params={"team": version["team"]}) as response:
            for block in response.iter_bytes():
                digest.update(block)
                yield block
        if digest.hexdigest() != entry["sha256"]:
            raise BadArtifact(f"{entry['path']} of {version['version']} arrived damaged; try again")


def model_place(name: str) -> str:
    """The route of a model."""
    return f"/v1/models/{quote(name, safe='')}"


def version_place(wanted: VersionReference) -> str:
    """The route of a version as people refer to it."""
    return f"{model_place(wanted.name)}/versions/{quote(version_part(wanted), safe='')}"


def version_part(wanted: VersionReference) -> str:
    """A version as routes write it: its number or its alias."""
    return str(wanted.number) if wanted.number is not None else (wanted.alias or LATEST)


def _search_params(search: VersionSearch | None) -> dict[str, Any]:
    """The parameters of a search; None where one is not set."""
    if search is None:
        return {}
    return {
        "family": search.family,
        "precision": search.precision,
        "verdict": search.verdict,
        "max_size": search.largest_bytes,
        "text": search.text,
        "deprecated": search.is_deprecated,
        "flagged": search.is_flagged,
        "deleted": search.is_deleted or None,
    }


def _place_of(version: Json) -> str:
    """The route of a version."""
    return f"/v1/models/{quote(version['model'], safe='')}/versions/{version['number']}"

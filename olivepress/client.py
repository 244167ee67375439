"""The Python client of the REST API: one thin method a route, JSON values out, olivepress errors raised."""

import contextlib
import hashlib
import json
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_origin
from urllib.parse import quote, urlsplit

import httpx

from olivepress import errors
from olivepress.errors import BadArtifact, DiskFull, OlivepressError, PermanentError, ServiceUnavailable
from olivepress.manifest import Manifest
from olivepress.registry import LATEST, VersionReference
from olivepress.store.manifest import Manifest as ArtifactManifest
from olivepress.store.manifest import check_paths

Json = dict[str, Any]
T = TypeVar("T")
OnBytes = Callable[[int, int], None]
"""Called with the bytes received and the bytes in all."""

DEFAULT_TEAM = "default"
CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0
# Ten thousand jobs at once, on a busy machine.
LARGE_ANSWER_TIMEOUT_S = 300.0
# It reads every manifest of the store, which may be on another machine.
RETENTION_TIMEOUT_S = 3600.0
PAGE = 1000
NO_SPACE = 28
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class Client:
    """A connection to the API; use as a context manager. Methods raise the olivepress error that the API answers.

    All raise ServiceUnavailable when the API does not answer, and NotAllowed when it refuses the key.
    """

    def __init__(self, url: str, key: str | None = None, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url
        self._is_local = urlsplit(url).hostname in LOOPBACK
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            transport=transport,
            # A proxy that the environment names cannot reach this machine's loopback.
            trust_env=not self._is_local,
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def submit(self, manifest: Manifest, idempotency_key: str | None = None) -> Json:
        """Submit a batch: its id, the ids of its jobs, its state.

        Raises:
            BadManifest: the API cannot accept it, and says why.
            UnknownRecipe: a recipe that the API does not have.
        """
        body = manifest.model_dump(mode="json", exclude_none=True)
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        send = {"json": body, "headers": headers, "timeout": LARGE_ANSWER_TIMEOUT_S}
        try:
            return self._document("POST", "/v1/batches", **send)
        except ServiceUnavailable:
            # The answer may have been lost after the commit; with its key the batch is submitted once.
            return self._document("POST", "/v1/batches", **send)

    def batches(self, team: str = DEFAULT_TEAM, limit: int = 50, before: int | None = None) -> list[Json]:
        """The newest batches of a team; `before` an id for the next page."""
        return self._list("/v1/batches", team=team, limit=limit, before=before)

    def batch(self, batch_id: int, states: Iterable[str] = ()) -> Json:
        """A batch with its jobs (in these states only, if given) and their steps.

        Raises:
            NotFound: there is no such batch.
        """
        params = _without_none(state=list(states) or None)
        return self._document("GET", f"/v1/batches/{batch_id}", params=params, timeout=LARGE_ANSWER_TIMEOUT_S)

    def cancel_batch(self, batch_id: int) -> Json:
        """Cancel the jobs of a batch that are not over; the batch as it is then.

        Raises:
            NotFound: there is no such batch.
        """
        return self._document("POST", f"/v1/batches/{batch_id}/cancel", timeout=LARGE_ANSWER_TIMEOUT_S)

    def jobs(
        self,
        team: str = DEFAULT_TEAM,
        states: Iterable[str] = (),
        batch: int | None = None,
        limit: int = 50,
        before: int | None = None,
    ) -> list[Json]:
        """The newest jobs of a team with their steps; `before` an id for the next page."""
        return self._list("/v1/jobs", team=team, state=list(states) or None, batch=batch, limit=limit, before=before)

    def job(self, job_id: int) -> Json:
        """A job with its steps, their attempts, and the validation's report.

        Raises:
            NotFound: there is no such job.
        """
        return self._document("GET", f"/v1/jobs/{job_id}")

    def job_log(self, job_id: int, step: str | None = None) -> list[Json]:
        """The ends of the logs of a job's attempts, oldest first.

        Raises:
            NotFound: there is no such job.
        """
        logs: list[Json] = self._document("GET", f"/v1/jobs/{job_id}/log", params=_without_none(step=step))["logs"]
        return logs

    def follow_log(self, job_id: int, step: str | None = None) -> Iterator[Json]:
        """What a job's attempts print, as it comes: events `attempt`, `lines`, `ended` and at last `over`.

        Raises:
            NotFound: there is no such job.
            ServiceUnavailable: also when the connection breaks before the end.
        """
        params = _without_none(step=step, follow=True)
        with (
            self._lost_is_named(),
            self._http.stream("GET", f"/v1/jobs/{job_id}/log", params=params) as response,
        ):
            if response.status_code >= 400:
                response.read()
                raise _error_of(response)
            for line in response.iter_lines():
                if line.startswith("data: "):
                    event: Json = json.loads(line.removeprefix("data: "))
                    yield event
                    if event["event"] == "over":
                        return
        raise ServiceUnavailable(f"the service at {self.url} ended in the middle of the log; follow it again")

    def cancel_job(self, job_id: int) -> Json:
        """Cancel a job; the job as it is then.

        Raises:
            NotFound: there is no such job.
        """
        return self._document("POST", f"/v1/jobs/{job_id}/cancel")

    def models(self, team: str = DEFAULT_TEAM) -> list[Json]:
        """All models of a team with their newest version and their aliases."""
        found: list[Json] = []
        while True:
            page = self._list("/v1/models", team=team, limit=PAGE, after=found[-1]["name"] if found else None)
            found += page
            if len(page) < PAGE:
                return found

    def model(self, name: str, team: str = DEFAULT_TEAM) -> Json:
        """A model with its versions and aliases.

        Raises:
            NotFound: the team has no such model.
        """
        return self._document("GET", f"/v1/models/{quote(name, safe='')}", params={"team": team})

    def version(self, wanted: VersionReference, team: str = DEFAULT_TEAM) -> Json:
        """A version with its report, provenance and files.

        Raises:
            NotFound: the team has no such model, version or alias.
        """
        ref = str(wanted.number) if wanted.number is not None else (wanted.alias or LATEST)
        path = f"/v1/models/{quote(wanted.name, safe='')}/versions/{quote(ref, safe='')}"
        return self._document("GET", path, params={"team": team})

    def read_file(self, version: Json, path: str) -> bytes:
        """The content of a small file of a version (as `version` gave it), verified.

        Raises:
            NotFound: the version has no such file.
            BadArtifact: it arrived damaged.
        """
        entry = next((file for file in version["files"] if file["path"] == path), None)
        if entry is None:
            raise errors.NotFound(f"{version['version']} has no file '{path}'; submit its checkpoint again")
        return b"".join(self._verified(version, entry))

    def write_files(self, version: Json, directory: Path, on_bytes: OnBytes | None = None) -> None:
        """Write all files of a version (as `version` gave it) into an empty directory, each verified.

        Raises:
            BadArtifact: a file arrived damaged, or its path would lie elsewhere.
            DiskFull: no room in the directory.
        """
        check_paths([file["path"] for file in version["files"]])
        total_bytes = sum(file["size_bytes"] for file in version["files"])
        received_bytes = 0
        for entry in version["files"]:
            target = directory / entry["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            with full_disk_is_named(directory, total_bytes), target.open("xb") as file:
                for block in self._verified(version, entry):
                    file.write(block)
                    received_bytes += len(block)
                    if on_bytes:
                        on_bytes(received_bytes, total_bytes)

    def download(
        self, wanted: VersionReference, target: Path, team: str = DEFAULT_TEAM, on_bytes: OnBytes | None = None
    ) -> Json:
        """Download a version as the new directory `target`, which appears whole or not at all.

        Raises:
            NotFound: the team has no such model, version or alias.
            PermanentError: `target` exists.
            BadArtifact: a file arrived damaged.
            DiskFull: no room beside the target.
        """
        target = target.expanduser().absolute()
        if target.exists():
            raise PermanentError(f"{target} exists already; remove it or choose another directory")
        version = self.version(wanted, team)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        try:
            self.write_files(version, partial, on_bytes)
            # mkdtemp makes it private; what is downloaded is as readable as any new directory.
            partial.chmod(0o755)
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return version

    def recipes(self, team: str = DEFAULT_TEAM) -> list[Json]:
        """What a checkpoint can be turned into: the built-in recipes, and the newest version of each of the team's."""
        return self._list("/v1/recipes", team=team)

    def recipe(self, reference: str, team: str = DEFAULT_TEAM) -> Json:
        """A recipe by NAME or NAME@VERSION, in full; by its version also one that was removed.

        Raises:
            NotFound: there is none.
        """
        return self._document("GET", f"/v1/recipes/{quote(reference, safe='')}", params={"team": team})

    def add_recipe(self, keys: Json, team: str = DEFAULT_TEAM) -> Json:
        """Keep a recipe under its name; the recipe with its version, which is new where its content is.

        Raises:
            BadRecipe: it cannot be, and why.
        """
        return self._document("POST", "/v1/recipes", json=keys, params={"team": team})

    def remove_recipe(self, reference: str, team: str = DEFAULT_TEAM) -> list[Json]:
        """Offer a recipe, NAME or NAME@VERSION, no more; the versions that were removed. Jobs that use it keep it.

        Raises:
            NotFound: there is none.
            BadRecipe: it is built in.
        """
        answer = self._answer("DELETE", f"/v1/recipes/{quote(reference, safe='')}", params={"team": team})
        return _decoded(answer, list[Json])

    def artifact_manifest(self, version: Json) -> ArtifactManifest:
        """The files of a version (as `version` gave it) and the chunks that they consist of, verified.

        Raises:
            BadArtifact: it arrived damaged, or lists what could not be laid out here.
        """
        content = self._answer("GET", f"{_place_of(version)}/manifest", params={"team": version["team"]}).content
        if hashlib.sha256(content).hexdigest() != version["artifact_digest"]:
            raise BadArtifact(f"the list of files of {version['version']} arrived damaged; try again")
        return ArtifactManifest.parse(content)

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
        with self._lost_is_named(), self._http.stream("GET", place, **options) as response:
            if response.status_code >= 400:
                response.read()
                raise _error_of(response)
            # Something in between that knows no ranges sends all of it.
            unwanted = start if response.status_code == httpx.codes.OK else 0
            for block in response.iter_bytes():
                wanted = block[unwanted:]
                unwanted = max(0, unwanted - len(block))
                if wanted:
                    yield wanted

    def workers(self) -> list[Json]:
        """Workers that live, and those that were seen within the last day."""
        return self._list("/v1/workers")

    def costs(self) -> list[Json]:
        """What past attempts took against what sizes predict: kind, family, memory_ratio, seconds_ratio, attempts."""
        return self._list("/v1/costs")

    def health(self) -> list[Json]:
        """Every part of the stack: name, status (ok, warn, fail), detail, what_now."""
        return self._list("/v1/health")

    def retention(self, *, dry_run: bool) -> Json:
        """Remove what is too old to keep, or with `dry_run` look what would go: counts and bytes by kind.

        Raises:
            TransientError: a run is under way already.
        """
        return self._document("GET" if dry_run else "POST", "/v1/retention", timeout=RETENTION_TIMEOUT_S)

    def store(self) -> Json:
        """What the store holds: artifacts, logical_bytes, stored_bytes, and the same for each of its families."""
        return self._document("GET", "/v1/store", timeout=LARGE_ANSWER_TIMEOUT_S)

    def healthz(self) -> Json:
        """Whether the stack is alive, and its version; needs no key. Says `down` rather than raise."""
        with self._lost_is_named():
            response = self._http.get("/healthz")
        if response.status_code not in (200, 503):
            raise _error_of(response)
        return _decoded(response, Json)

    def _document(self, method: str, path: str, **options: Any) -> Json:
        return _decoded(self._answer(method, path, **options), Json)

    def _list(self, path: str, **params: Any) -> list[Json]:
        return _decoded(self._answer("GET", path, params=_without_none(**params)), list[Json])

    def _answer(self, method: str, path: str, **options: Any) -> httpx.Response:
        with self._lost_is_named():
            response = self._http.request(method, path, **options)
        if response.status_code >= 400:
            raise _error_of(response)
        return response

    def _verified(self, version: Json, entry: Json) -> Iterator[bytes]:
        """The content of a file; ends with BadArtifact unless it is what the manifest says."""
        place = f"{_place_of(version)}/files/{quote(entry['path'])}"
        digest = hashlib.sha256()
        with self._lost_is_named(), self._http.stream("GET", place, params={"team": version["team"]}) as response:
            if response.status_code >= 400:
                response.read()
                raise _error_of(response)
            for block in response.iter_bytes():
                digest.update(block)
                yield block
        if digest.hexdigest() != entry["sha256"]:
            raise BadArtifact(f"{entry['path']} of {version['version']} arrived damaged; try again")

    @contextlib.contextmanager
    def _lost_is_named(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            advice = "is `olivepress up` running?" if self._is_local else "check OLIVEPRESS_URL and the network"
            raise ServiceUnavailable(f"nothing answers at {self.url}; {advice}") from error
        except httpx.TimeoutException as error:
            raise ServiceUnavailable(
                f"the service at {self.url} takes too long to answer; look at its log, and try again"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            message = str(error) or type(error).__name__
            raise ServiceUnavailable(f"the connection to {self.url} broke ({message}); try again") from error


def _place_of(version: Json) -> str:
    """The route of a version."""
    return f"/v1/models/{quote(version['model'], safe='')}/versions/{version['number']}"


def _error_of(response: httpx.Response) -> OlivepressError:
    """The error that the API answered, as the class that it names."""
    try:
        problem = response.json()
        kind, detail = getattr(errors, problem["error_class"], None), str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        kind = None
        detail = f"{response.url} answered {response.status_code}, and not as olivepress does; check OLIVEPRESS_URL"
    if isinstance(kind, type) and issubclass(kind, OlivepressError):
        return kind(detail)
    return ServiceUnavailable(detail) if response.status_code >= 500 else PermanentError(detail)


def _decoded(response: httpx.Response, kind: type[T]) -> T:
    with contextlib.suppress(ValueError):
        value: T = response.json()
        if isinstance(value, get_origin(kind) or kind):
            return value
    raise ServiceUnavailable(f"{response.url} answered, but not as olivepress does; check OLIVEPRESS_URL")


def _without_none(**params: Any) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


@contextlib.contextmanager
def full_disk_is_named(directory: Path, needed_bytes: int) -> Iterator[None]:
    """Turns "no space left" while writing into a directory into DiskFull."""
    try:
        yield
    except OSError as error:
        if error.errno != NO_SPACE:
            raise
        needed_mb = needed_bytes / 1e6
        raise DiskFull(
            f"no room is left in {directory} for {needed_mb:.0f} MB; free some space and try again"
        ) from error

"""Publications as the last step of a job makes them, without the steps before it."""

from pathlib import Path
from typing import Any

from olivepress.database.sessions import Database, Session
from olivepress.database.versions import Published
from olivepress.jobs import StepKind
from olivepress.steps import Done, StepResult
from olivepress.store import DirectoryStore
from tests.integration.database_cases import INGESTED, submit_paths
from workers.steps import publish

REPORT: dict[str, Any] = {"schema_version": 1, "gates": [], "prompts": {"items": [{"answer": "ünïcode"}]}}
PACKAGE = {
    "genai_config.json": b'{"model": {"context_length": 4096}}',
    "tokenizer/merges.txt": b"a b\n" * 50,
    "model.onnx.data": bytes(range(256)) * 1000,
}


def put(store: DirectoryStore, scratch: Path, package: dict[str, bytes]) -> str:
    """The digest of a package of these files, in the store."""
    for path, content in package.items():
        (scratch / path).parent.mkdir(parents=True, exist_ok=True)
        (scratch / path).write_bytes(content)
    return store.put_directory(scratch).digest


def done_steps(package_digest: str, report: dict[str, Any] = REPORT) -> Done:
    """What the steps before publish left."""
    return {
        StepKind.INGEST: StepResult(INGESTED),
        StepKind.CONVERT: StepResult({"parity": {}, "notes": []}, "c" * 64),
        StepKind.PACKAGE: StepResult({"prompt_template": None, "prompt_template_reason": None}, package_digest),
        StepKind.VALIDATE: StepResult({"verdict": "passed", "report": report}),
    }


class Publisher:
    """A store, a database and perhaps a key, and packages that are published with them."""

    def __init__(self, database: Database, root: Path, key_file: Path | None = None) -> None:
        self.database, self.root, self.key_file = database, root, key_file
        self.store = DirectoryStore(root / "store")

    def job(self, name: str = "support", **manifest: Any) -> int:
        """A job that may publish NAME-int4."""
        (job_id,) = submit_paths(self.database, f"/models/{name}", recipes=["cpu-int4"], **manifest)
        return job_id

    def package(self, content: bytes = b"", size_bytes: int = 1000) -> str:
        """A package whose weights begin with this content."""
        files = PACKAGE | {"model.onnx.data": content.ljust(size_bytes, b"\0")}
        return put(self.store, self.root / f"package-{content.hex()}", files)

    def publish_in(self, session: Session, job_id: int, package_digest: str) -> Published:
        """Publish in a transaction of the caller."""
        return publish.publish(session, self.store, job_id, done_steps(package_digest), self.key_file)

    def publish(self, content: bytes = b"", name: str = "support", **manifest: Any) -> Published:
        """Submit a job and publish what it made."""
        job_id, package_digest = self.job(name, **manifest), self.package(content)
        with self.database.write() as session:
            return self.publish_in(session, job_id, package_digest)

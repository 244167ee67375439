"""Talks to the real Foundry Local runtime in a process of its own: certificates and chats. Loads no SDK itself."""

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from olivepress.checkpoints.chat_template import Message
from olivepress.errors import OlivepressError, ServiceUnavailable
from olivepress.foundry import inference_model as foundry
from olivepress.own_process import Program, ProgressListener, ask

SDK = "foundry_local_sdk"
RUNTIME = Program("workers.toolchains.foundry_local", "the Foundry Local runtime", time_limit_s=900.0)
DEFAULT_QUESTION = "What can you help me with?"
QUESTIONS_ASKED_AT_MOST = 3
CERTIFICATE_TOKENS = 32
CHAT_TOKENS = 200


@dataclass(frozen=True)
class Exchange:
    """One question and its answer; `mode` is "session", "stream" or "web", the way it was asked."""

    mode: str
    question: str
    answer: str
    seconds: float


def certify(
    artifact: Path,
    name: str,
    conversations: Sequence[Sequence[Message]],
    scratch: Path,
    *,
    on_progress: ProgressListener = lambda phase, share: None,
) -> dict[str, Any]:
    """A certificate: proof that the artifact chatted inside the real runtime, or the problem that kept it from it.

    The artifact is registered in a fresh cache under the provisional name "<name>:1", loaded, and asked: through a chat
    session at once and streamed, and through the web endpoint, greedily and with an explicit max_tokens. It passes
    when each completes, all three give the same text, and that is not empty for every question.

    Returns:
        {"status": "passed" | "failed", "name", "runtime": {library: version}, "network": "none" | "host",
        "exchanges": [{"mode", "question", "answer", "seconds"}], "register_seconds", "load_seconds": float or None,
        "peak_rss_bytes": of the runtime, which makes room for the whole context, or None, "discovery": what the rules
        of older runtimes make of it, {"listed_as": id or None, "problems": [str]}, "notes": [str],
        "problem": str | None}

    A crash, a hang or a kill of the runtime ends only its own process and is such a problem; nothing is raised for it.
    """
    certificate: dict[str, Any] = {"status": "failed", "name": "", "runtime": {}, "network": "host", "exchanges": []}
    certificate |= {"register_seconds": None, "load_seconds": None, "peak_rss_bytes": None}
    certificate |= {"discovery": {"listed_as": None, "problems": []}, "notes": [], "problem": None}
    asked = [list(map(dict, conversation)) for conversation in conversations[: QUESTIONS_ASKED_AT_MOST - 1]]
    try:
        certificate["name"] = foundry.foundry_name(name, 1)
        request = {
            "action": "certify",
            "artifact": str(artifact.resolve()),
            "model_id": certificate["name"],
            "conversations": [*asked, [{"role": "user", "content": DEFAULT_QUESTION}]],
            "max_tokens": CERTIFICATE_TOKENS,
            "home": str(_fresh_home(scratch)),
        }
        certificate["discovery"] = discovery(artifact, certificate["name"], scratch)
        certificate |= ask(RUNTIME, request, scratch, on_progress=on_progress)
        if certificate["status"] == "passed" and certificate["discovery"]["problems"]:
            problems = "; ".join(certificate["discovery"]["problems"])
            return certificate | {"status": "failed", "problem": f"older Foundry Local would not list it: {problems}"}
        return certificate
    except OlivepressError as error:
        return certificate | {"problem": str(error)}


def discovery(artifact: Path, model_id: str, scratch: Path) -> dict[str, Any]:
    """What the discovery of Foundry Local up to 2.0.1 makes of this model directory once it is in a cache.

    Those runtimes know a model by inference_model.json alone; the rules of their scanner are applied to a cache that
    holds the directory's small files beside another model. Before publishing the file is made as publishing does.

    Returns:
        {"listed_as": the id, or None, "problems": [str]}
    """
    with tempfile.TemporaryDirectory(prefix="discovery-", dir=scratch) as directory:
        cache = Path(directory)
        ours = cache / foundry.INFERENCE_MODEL_FILE.partition(".")[0]
        for place, name in ((ours, model_id), (cache / "beside", "another-model:1")):
            place.mkdir()
            if place != ours or (artifact / foundry.GENAI_CONFIG_FILE).is_file():
                (place / foundry.GENAI_CONFIG_FILE).touch()
            (place / foundry.INFERENCE_MODEL_FILE).write_text(json.dumps({"Name": name}), encoding="utf-8")
        own = artifact / foundry.INFERENCE_MODEL_FILE
        if own.is_file():
            shutil.copyfile(own, ours / foundry.INFERENCE_MODEL_FILE)
        if (artifact / foundry.UNFINISHED_FILE).exists():
            (ours / foundry.UNFINISHED_FILE).touch()
        scan = foundry.scan_rules(cache)
    listed_as = next((name for name, places in scan.directories.items() if ours in places), None)
    problems = [problem.replace(f"{ours}/", "") for problem in scan.problems]
    if listed_as is None and not problems:
        problems.append(f"it has no {foundry.GENAI_CONFIG_FILE}, or a {foundry.UNFINISHED_FILE} of a download")
    return {"listed_as": listed_as, "problems": problems}


def chat(cache_dir: Path, model_id: str, questions: Sequence[str], *, max_tokens: int = CHAT_TOKENS) -> list[Exchange]:
    """Ask an installed model version these questions in one conversation, greedily, through the real runtime.

    Args:
        cache_dir: a cache that `foundry_cache.install_into_cache` (or Foundry Local itself) wrote.
        model_id: such as "support-en-int4:1".

    Raises:
        ServiceUnavailable: the runtime is not installed here.
        RuntimeCrashed: the runtime ended without an answer.
        BadArtifact: the runtime does not list, load or answer with this model.
    """
    if not has_sdk():
        raise ServiceUnavailable(
            "the Foundry Local runtime is not installed in this Python; install olivepress[worker] or foundry-local-sdk"
        )
    with tempfile.TemporaryDirectory(prefix="olivepress-chat-", ignore_cleanup_errors=True) as directory:
        scratch = Path(directory)
        request = {
            "action": "chat",
            "cache_dir": str(cache_dir.expanduser().resolve()),
            "model_id": model_id,
            "questions": list(questions),
            "max_tokens": max_tokens,
            "home": str(_fresh_home(scratch)),
        }
        with (scratch / "runtime.log").open("wb") as log:
            answer = ask(RUNTIME, request, scratch, log=log)
    return [Exchange(**exchange) for exchange in answer["exchanges"]]


def has_sdk() -> bool:
    """Whether the runtime is installed in this Python."""
    return importlib.util.find_spec(SDK) is not None


def register(cache_dir: Path, model_id: str, directory: Path) -> None:
    """Register an installed version in a cache's local catalog by the SDK's own `register_model`.

    Raises:
        RuntimeCrashed: the runtime ended without an answer.
        BadArtifact: the runtime does not take it.
    """
    with tempfile.TemporaryDirectory(prefix="olivepress-register-", ignore_cleanup_errors=True) as scratch:
        request = {
            "action": "register",
            "cache_dir": str(cache_dir),
            "model_id": model_id,
            "artifact": str(directory),
            "home": str(_fresh_home(Path(scratch))),
        }
        with (Path(scratch) / "runtime.log").open("wb") as log:
            ask(RUNTIME, request, Path(scratch), log=log)


def _fresh_home(scratch: Path) -> Path:
    """Where the runtime keeps its data, logs and cache for this one time."""
    return Path(tempfile.mkdtemp(prefix="foundry-", dir=scratch))

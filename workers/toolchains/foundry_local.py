"""The program in which the real Foundry Local runtime runs: `python -m workers.toolchains.foundry_local`.

Its parent half is olivepress.foundry.runtime. Nothing else imports the SDK, and no worker preloads this module.
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from foundry_local_sdk import (
    ChatSession,
    Configuration,
    FoundryLocalManager,
    LogLevel,
    MessageItem,
    Request,
    RequestOptions,
    SearchOptions,
    TextItem,
)
from foundry_local_sdk.catalog import Catalog, CatalogType
from foundry_local_sdk.exception import FoundryLocalException
from foundry_local_sdk.imodel import IModel
from foundry_local_sdk.items import Item, MessageRole
from foundry_local_sdk.model_info import ModelInfoBuilder
from foundry_local_sdk.session_types import FinishReason

from olivepress.errors import BadArtifact
from olivepress.foundry.inference_model import DEFAULT_OUTPUT_TOKENS
from olivepress.own_process import ProgressListener, answer_with
from workers.measures.memory import peak_rss_bytes
from workers.network import leave_the_network
from workers.toolchains.native_words import native_words

LIBRARIES = ("foundry-local-sdk", "onnxruntime", "onnxruntime-genai-core")
ROLES = {"system": MessageRole.SYSTEM, "user": MessageRole.USER, "assistant": MessageRole.ASSISTANT}
COMPLETE = (FinishReason.STOP, FinishReason.LENGTH)
WEB_PATH = "/catalogs/local/v1/chat/completions"
WEB_TIMEOUT_S = 600.0
Messages = Sequence[Mapping[str, str]]
Way = Callable[[Messages], str]


class Stage:
    """How far the runtime has come, for whoever waits and for the message if it fails there."""

    def __init__(self, report_progress: ProgressListener) -> None:
        self.name = "starting"
        self._report_progress = report_progress

    def enter(self, name: str, share: float) -> None:
        """Begin this stage; `share` (0 to 1) of the work is behind."""
        self.name = name
        self._report_progress(name, share)


def handle(request: dict[str, Any], report_progress: ProgressListener) -> dict[str, Any]:
    """Answer one request of olivepress.foundry.runtime: "certify", "chat" or "register"."""
    if request["action"] == "certify":
        return _certify(request, report_progress)
    if request["action"] == "register":
        return _register(request)
    return _chat(request, report_progress)


def _certify(request: Mapping[str, Any], report_progress: ProgressListener) -> dict[str, Any]:
    certificate: dict[str, Any] = {
        "status": "failed",
        "runtime": {library: version(library) for library in LIBRARIES},
        "network": "none" if leave_the_network() else "host",
        "exchanges": [],
        "register_seconds": None,
        "load_seconds": None,
        "peak_rss_bytes": None,
        "notes": [],
        "problem": None,
    }
    stage = Stage(report_progress)
    try:
        stage.enter("starting", 0.1)
        manager = _runtime(Path(request["home"]) / "models", Path(request["home"]))
        stage.enter("loading the model", 0.2)
        started = time.perf_counter()
        model = _registered(manager.get_catalog(CatalogType.LOCAL), request["artifact"], request["model_id"])
        certificate["register_seconds"] = round(time.perf_counter() - started, 4)
        started = time.perf_counter()
        model.load()
        certificate["load_seconds"] = round(time.perf_counter() - started, 4)
        certificate["notes"] += _notes(model)
        _interview(manager, model, request, certificate, stage)
        certificate["peak_rss_bytes"] = peak_rss_bytes()
        model.unload()
        certificate["status"] = "passed"
    except (FoundryLocalException, BadArtifact, ValueError) as error:
        words = native_words(error, Path(request["artifact"]))
        certificate["problem"] = f"the Foundry Local runtime failed while {stage.name}: {words}"
    return certificate


def _chat(request: Mapping[str, Any], report_progress: ProgressListener) -> dict[str, Any]:
    leave_the_network()
    exchanges = []
    stage = Stage(report_progress)
    try:
        stage.enter("starting", 0.1)
        manager = _runtime(Path(request["cache_dir"]), Path(request["home"]))
        model = manager.get_catalog(CatalogType.LOCAL).get_model_variant(request["model_id"])
        if model is None:
            raise BadArtifact(f"Foundry Local lists no model {request['model_id']} in this cache; install it first")
        stage.enter("loading the model", 0.2)
        model.load()
        with _session(model, request["max_tokens"]) as session:
            for place, question in enumerate(request["questions"]):
                stage.enter("chatting", 0.3 + 0.6 * place / len(request["questions"]))
                started = time.perf_counter()
                answer = _ask(session, [{"role": "user", "content": question}])
                exchanges.append(_exchange("session", question, answer, started))
        model.unload()
    except (FoundryLocalException, ValueError) as error:
        failed = f"the Foundry Local runtime failed with {request['model_id']} while {stage.name}"
        raise BadArtifact(f"{failed}: {native_words(error)}") from error
    return {"exchanges": exchanges}


def _register(request: Mapping[str, Any]) -> dict[str, Any]:
    leave_the_network()
    try:
        catalog = _runtime(Path(request["cache_dir"]), Path(request["home"])).get_catalog(CatalogType.LOCAL)
        _registered(catalog, request["artifact"], request["model_id"])
        if catalog.get_model_variant(request["model_id"]) is None:
            raise BadArtifact(f"Foundry Local does not list {request['model_id']} after it was registered")
    except (FoundryLocalException, ValueError) as error:
        words = native_words(error, Path(request["artifact"]))
        raise BadArtifact(f"Foundry Local did not register {request['model_id']}: {words}") from error
    return {}


def _runtime(cache: Path, home: Path) -> FoundryLocalManager:
    configuration = Configuration(
        app_name="olivepress",
        app_data_dir=str(home / "data"),
        model_cache_dir=str(cache),
        logs_dir=str(home / "logs"),
        log_level=LogLevel.WARNING,
        disable_nonessential_telemetry=True,
    )
    FoundryLocalManager.initialize(configuration)
    manager = FoundryLocalManager.instance
    if manager is None:
        raise BadArtifact("the Foundry Local runtime did not start")
    return manager


def _registered(catalog: Catalog, artifact: str, model_id: str) -> IModel:
    with ModelInfoBuilder() as metadata:
        metadata.set_string_property("task", "chat-completion")
        return catalog.register_model(artifact, model_id, metadata)


def _notes(model: IModel) -> list[str]:
    context_length = model.info.context_length or 0
    if context_length > DEFAULT_OUTPUT_TOKENS:
        return []
    return [
        f"Foundry Local keeps {DEFAULT_OUTPUT_TOKENS} tokens for an answer unless a request sets max_tokens, so with a "
        f"context of {context_length} tokens every request must set it"
    ]


def _interview(
    manager: FoundryLocalManager,
    model: IModel,
    request: Mapping[str, Any],
    certificate: dict[str, Any],
    stage: Stage,
) -> None:
    """Ask until one conversation was answered with words, the same in all three ways; every exchange is noted."""
    manager.start_web_service()
    has_text = False
    for place, messages in enumerate(request["conversations"]):
        stage.enter("chatting", 0.3 + 0.6 * place / len(request["conversations"]))
        answers = set()
        for mode, ask in _ways(manager, model, request["max_tokens"]).items():
            started = time.perf_counter()
            answers.add(answer := ask(messages))
            certificate["exchanges"].append(_exchange(mode, messages[-1]["content"], answer, started))
        if len(answers) > 1:
            raise BadArtifact("the answers at once, streamed and over the web differ, though all were greedy")
        text = answers.pop()
        if text.strip():
            return
        has_text = has_text or bool(text)
    asked = len(request["conversations"])
    if not has_text:
        raise BadArtifact(f"the model answered none of {asked} questions with any text")
    certificate["notes"].append(f"the model answered {asked} questions with nothing but white space")


def _ways(manager: FoundryLocalManager, model: IModel, max_tokens: int) -> dict[str, Way]:
    """The ways of asking. A session remembers its conversation, so each question gets a fresh one."""

    def at_once(messages: Messages) -> str:
        with _session(model, max_tokens) as session:
            return _ask(session, messages)

    def streamed(messages: Messages) -> str:
        with _session(model, max_tokens) as session:
            return _ask_streamed(session, messages)

    def over_the_web(messages: Messages) -> str:
        url = (manager.urls or [""])[0] + WEB_PATH
        return _ask_over_the_web(
            url, {"model": model.id, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0.0}
        )

    return {"session": at_once, "stream": streamed, "web": over_the_web}


@contextmanager
def _session(model: IModel, max_tokens: int) -> Iterator[ChatSession]:
    session = ChatSession(model)
    with session:
        session.set_options(RequestOptions(search=SearchOptions(temperature=0.0, max_output_tokens=max_tokens)))
        yield session


def _request(messages: Messages) -> Request:
    request = Request()
    for message in messages:
        request.add_item(MessageItem(ROLES[message["role"]], message["content"]))
    return request


def _ask(session: ChatSession, messages: Messages) -> str:
    with _request(messages) as request, session.process_request(request) as response:
        if response.finish_reason not in COMPLETE:
            raise BadArtifact(f"the runtime ended an answer with {response.finish_reason.name.lower()}")
        return "".join(map(_text, response))


def _ask_streamed(session: ChatSession, messages: Messages) -> str:
    session.set_streaming(True)
    with _request(messages) as request, session.process_streaming_request(request) as stream:
        text = "".join(map(_text, stream))
        with stream.final_response as response:
            if response.finish_reason not in COMPLETE:
                raise BadArtifact(f"the runtime ended a streamed answer with {response.finish_reason.name.lower()}")
        return text


def _text(item: Item) -> str:
    if isinstance(item, MessageItem):
        return "".join(map(_text, item.parts))
    return item.text if isinstance(item, TextItem) else ""


def _ask_over_the_web(url: str, body: Mapping[str, Any]) -> str:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=WEB_TIMEOUT_S) as response:
            answer = json.load(response)
        return str(answer["choices"][0]["message"]["content"])
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(500).decode(errors="replace")
            raise BadArtifact(f"the web endpoint answered {error.code}: {said}") from error
    except (OSError, ValueError, LookupError) as error:
        raise BadArtifact(f"the web endpoint gave no answer: {error}") from error


def _exchange(mode: str, question: str, answer: str, started: float) -> dict[str, Any]:
    seconds = time.perf_counter() - started
    return {"mode": mode, "question": question, "answer": answer, "seconds": round(seconds, 4)}


if __name__ == "__main__":
    answer_with(handle)
    # Stopping its web service takes the runtime a second of waiting, and nothing is left to be saved.
    os._exit(0)

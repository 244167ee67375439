"""`olivepress demo`: the whole way on this machine, with a family of tiny models that it trains first."""

import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from olivepress.cli import FAILED
from olivepress.cli.install import install_version
from olivepress.cli.options import AsJson
from olivepress.cli.output import console, emit
from olivepress.cli.progress import watch_batch
from olivepress.cli.tables import duration
from olivepress.cli.up import stack_settings
from olivepress.cli.watch import show_outcome
from olivepress.client import Client
from olivepress.errors import ServiceUnavailable
from olivepress.evidence.known_keys import KnownKeys
from olivepress.evidence.trust import Trust
from olivepress.foundry.runtime import chat
from olivepress.jobs import JobState
from olivepress.manifest import parse_manifest, read_prompts
from olivepress.own_process import Program, ask
from olivepress.registry import parse_reference
from olivepress.services.stack import Stack
from olivepress.settings import Settings

RECIPES = ["cpu-int4", "cpu-int8"]
DEATH_TOLD_WITHIN_S = 3.0
LOOK_EVERY_S = 0.25
TRAINING = Program("workers.toolchains.demo_family", "the training of the demo family", time_limit_s=None)


@dataclass(frozen=True)
class FineTune:
    """One checkpoint of the family: a directory, its base if it is an adapter, and its questions."""

    name: str
    path: str
    base: str | None
    prompts: list[dict[str, Any]]


def demo(
    size: Annotated[str, typer.Option(help="full: about a minute of training; small: seconds.")] = "full",
    recipe: Annotated[list[str] | None, typer.Option(help="Recipe; repeat for more.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train a family of tiny checkpoints, convert and certify them, install one and chat with it.

    Everything lies under `demo` in the data directory; the family is trained once and kept. All services are stopped
    at the end, also on Ctrl-C and when one of them dies.

    [bold]Examples[/]
      olivepress demo
      olivepress demo --recipe cpu-int4 --json
    """
    started, to = time.monotonic(), console(stderr=as_json)
    interrupts = _Interrupts()
    settings = Settings()
    home = settings.data_dir.resolve() / "demo"
    family_dir = home / "family"
    family = _train(family_dir, size, to)
    settings = settings.model_copy(update={"data_dir": home})
    with Stack(stack_settings(settings, [family_dir], 0, 0, None), may_restart=False) as stack:
        to.print("\n[bold]The stack is up[/] and stops when the demo ends")
        to.print(f"  API documentation  {stack.access.url}/docs", highlight=False)
        to.print(f"  Flower             {stack.access.flower_url}  (password in {stack.access.flower_password_file})\n")
        key = Path(stack.access.admin_key_file).read_text().strip()
        with Client(stack.access.url, key) as client, _death_told(stack):
            looking = _looking(stack, interrupts)
            _wait_for_worker(client, looking, to)
            batch = _press(client, family, recipe or RECIPES, looking, to)
            interrupts.check()
            exchanges = _install_and_chat(client, batch, family, home / "foundry-cache", to)
    to.print(f"\nThe demo took {duration(time.monotonic() - started)}; everything lies in {home}", soft_wrap=True)
    if as_json:
        emit({"batch": batch, "chat": exchanges, "seconds": round(time.monotonic() - started, 1)})
    if batch["state"] != JobState.SUCCEEDED:
        raise typer.Exit(FAILED)


def _train(directory: Path, size: str, to: Console) -> list[FineTune]:
    """The family, made in a process of its own unless it was made before."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description:32}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with tempfile.TemporaryDirectory(prefix="olivepress-demo-") as scratch:
        with (Path(scratch) / "training.log").open("wb") as log:
            with Progress(*columns, TimeElapsedColumn(), console=to) as progress:
                bar = progress.add_task("looking for the family", total=1.0)
                answer = ask(
                    TRAINING,
                    {"directory": str(directory), "size": size},
                    Path(scratch),
                    on_progress=lambda phase, share: progress.update(bar, description=phase, completed=share),
                    log=log,
                )
                progress.update(bar, description="the family is ready", completed=1.0)
    return [
        FineTune(entry["name"], entry["path"], entry["base"], read_prompts(Path(entry["prompts"])))
        for entry in answer["fine_tunes"]
    ]


def _looking(stack: Stack, interrupts: "_Interrupts") -> Callable[[float], None]:
    """A sleep that ends the demo when a part of the stack has died, or when it was interrupted."""

    def sleep(seconds: float) -> None:
        stack.check()
        interrupts.check()
        time.sleep(seconds)

    return sleep


def _wait_for_worker(client: Client, sleep: Callable[[float], None], to: Console) -> None:
    """Until the stack's worker has loaded its toolchain: a part that does not come up ends the demo by `sleep`."""
    with to.status("the worker loads torch, Olive and onnxruntime"):
        sleep(0.0)
        while not any(worker["alive"] for worker in client.workers()):
            sleep(LOOK_EVERY_S)


def _press(
    client: Client, family: list[FineTune], recipes: list[str], sleep: Callable[[float], None], to: Console
) -> dict[str, Any]:
    """Submit the family as one batch and follow it."""
    entries = [
        {"name": tune.name, "path": tune.path, "prompts": tune.prompts} | ({"base": tune.base} if tune.base else {})
        for tune in family
    ]
    manifest = parse_manifest({"name": "demo", "recipes": recipes, "checkpoints": entries})
    submitted = client.submit(manifest)
    batch = watch_batch(client, submitted["id"], to, sleep)
    show_outcome(batch, to)
    return batch


def _install_and_chat(
    client: Client, batch: dict[str, Any], family: list[FineTune], cache_dir: Path, to: Console
) -> list[dict[str, Any]]:
    """Install the first published version and ask it two questions of its domain through the real runtime."""
    published = [job for job in batch["jobs"] if job["version"]]
    if not published:
        return []
    job = published[0]
    # Its stack has another address each time, which is no news for what this user relies on.
    trust = Trust(client, KnownKeys(cache_dir.parent / "known_keys.json"), str(cache_dir.parent), is_local=True)
    installed = install_version(client, client.version(parse_reference(job["version"])), cache_dir, trust)
    to.print(f"\nInstalled [bold]{installed.model_id}[/] into {cache_dir}; a chat through the Foundry Local runtime:")
    questions = [_question(prompt) for tune in family if tune.name == job["name"] for prompt in tune.prompts]
    exchanges = []
    for question in (questions[0], questions[-1]):
        # Each in a conversation of its own: the family learned answers, not dialogues.
        (exchange,) = chat(cache_dir, installed.model_id, [question])
        to.print(Text.assemble(("\n  you    ", "cyan"), question), soft_wrap=True)
        to.print(Text.assemble(("  model  ", "green"), exchange.answer), soft_wrap=True)
        exchanges.append({"question": question, "answer": exchange.answer})
    return exchanges


@contextmanager
def _death_told(stack: Stack) -> Iterator[None]:
    """An API that does not answer is most often one that died, and the stack knows how.

    A killed process closes its sockets before its parent learns of its end, hence the second or two of looking.
    """
    try:
        yield
    except ServiceUnavailable:
        deadline = time.monotonic() + DEATH_TOLD_WITHIN_S
        while time.monotonic() < deadline:
            stack.check()
            time.sleep(0.05)
        raise


def _question(prompt: dict[str, Any]) -> str:
    messages = prompt.get("messages")
    return str(messages[-1]["content"] if messages else prompt["prompt"])


class _Interrupts:
    """SIGTERM ends the demo as Ctrl-C does: through every clean-up.

    An exception that comes while Python runs a finalizer is lost, and so was a Ctrl-C now and then: it is remembered.
    """

    def __init__(self) -> None:
        self._came = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)

    def _interrupt(self, *_: object) -> None:
        self._came = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise the one that was lost."""
        if self._came:
            raise KeyboardInterrupt

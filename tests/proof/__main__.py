"""`make proof`: the real validate step on good artifacts and on damaged ones; each must be told for what it is."""

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.proof.damages import BASE, BOS, DAMAGES, FINE_TUNE, Others
from tests.proof.press import Press, Source, failed_gates
from workers.toolchains.demo_family import Family, make_family

TRAINED = ("support-en", "python-help", "legal")
# Of each a recipe or two, so that all precisions meet all kinds of graph.
RANDOM = {
    "qwen2": ("cpu-int4", "cpu-int8"),
    "llama": ("cpu-int4-128", "cpu-fp16"),
    "mistral": ("cpu-int4-small",),
    "phi3": ("cpu-int4", "cpu-fp16"),
    "gemma2": ("cpu-int8", "cpu-int4"),
    "qwen3": ("cpu-int4", "cpu-fp32"),
    "gemma3_text": ("cpu-int4",),
    "smollm3": ("cpu-int8",),
    "granite": ("cpu-fp16",),
    "lfm2": ("cpu-int4",),
    "ernie4_5": ("cpu-int4-small",),
}
ALL_RECIPES = ("cpu-int4", "cpu-int4-small", "cpu-int4-128", "cpu-int8", "cpu-fp16")
VICTIMS = (("support-en", "cpu-int4"), ("legal", "cpu-int8"), ("llama", "cpu-int4-128"), ("with-bos", "cpu-fp16"))


def main() -> int:
    """Exit code 1 unless every good artifact passed and every damage was seen by the gate that must see it."""
    parser = argparse.ArgumentParser(prog="python -m tests.proof", description=__doc__)
    parser.add_argument("--only", metavar="WORD", default="", help="cases with this word in their name")
    parser.add_argument("--directory", type=Path, help="keep what is made here, and use it again")
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)
    directory = chosen.directory or Path(tempfile.mkdtemp(prefix="olivepress-proof-"))
    with _quiet():
        family = make_family(directory / "family", lambda phase, share: None, "small")
    press = Press(directory / "press")
    wrong = [name for case in (_good, _damaged) for name, is_right in case(press, family, chosen.only) if not is_right]
    for name in wrong:
        print(f"WRONG {name}")  # noqa: T201
    if chosen.directory is None:
        shutil.rmtree(directory)
    return 1 if wrong else 0


def _sources(press: Press, family: Family) -> dict[str, Source]:
    sources = [press.of_family(family, name) for name in (*TRAINED, "base")]
    sources += [press.random(name) for name in RANDOM]
    sources += [press.random("llama", tied=False), press.random_with_bos()]
    sources.append(press.random_adapter(press.random("llama")))
    return {source.name: source for source in sources}


def _good(press: Press, family: Family, only: str) -> Iterator[tuple[str, bool]]:
    sources = _sources(press, family)
    recipes = {name: ALL_RECIPES for name in TRAINED} | RANDOM
    recipes |= {"llama-untied": ("cpu-int4",), "with-bos": ("cpu-int4",), "llama-adapter": ("cpu-int4", "cpu-int8")}
    for name, recipe in ((name, recipe) for name, chosen in recipes.items() for recipe in chosen):
        case = f"good: {name} {recipe}"
        if only in case:
            artifact = press.package(sources[name], recipe)
            yield case, _is_right(press, sources[name], artifact, case, None)


def _damaged(press: Press, family: Family, only: str) -> Iterator[tuple[str, bool]]:
    sources = _sources(press, family)
    for name, recipe in VICTIMS:
        others = Others()
        if name in TRAINED:
            relative = next(other for other in TRAINED if other != name)
            others = Others(press.package(sources[relative], recipe), press.package(sources["base"], recipe))
        for what, damage in DAMAGES.items():
            case = f"{name} {recipe}: {what}"
            missing = damage.needs in (FINE_TUNE, BASE) and getattr(others, damage.needs) is None
            if only not in case or missing or (damage.needs == BOS and name != "with-bos"):
                continue
            artifact = press.copy(sources[name], recipe, press.root / "damaged")
            damage.change(artifact, others)
            yield case, _is_right(press, sources[name], artifact, case, damage.gate)
            shutil.rmtree(artifact)


def _is_right(press: Press, source: Source, artifact: Path, case: str, gate: str | None) -> bool:
    """Validate, print a line, and say whether the verdict is the right one: `gate` failed, or (None) none did."""
    work = press.root / "work"
    started = time.monotonic()
    with _quiet():
        result = press.validate(source, artifact, work)
    shutil.rmtree(work)
    failed = failed_gates(result)
    is_right = gate in failed if gate else not failed
    times = (result["report"].get("quality") or {}).get("kl_over_rounding")
    seconds = time.monotonic() - started
    print(  # noqa: T201
        f"{'right' if is_right else 'WRONG'} {case}: {', '.join(sorted(failed)) or 'passed'}"
        f" (distance {'not measured' if times is None else f'{times:g}'}, {seconds:.1f} s)",
        flush=True,
    )
    return is_right


@contextmanager
def _quiet() -> Iterator[None]:
    """The builder and torch print; their words go nowhere."""
    kept = [os.dup(1), os.dup(2)]
    with open(os.devnull, "w") as nowhere:
        for number in (1, 2):
            os.dup2(nowhere.fileno(), number)
        try:
            yield
        finally:
            sys.stdout.flush()
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)


if __name__ == "__main__":
    sys.exit(main())

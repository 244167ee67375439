"""`make proof`: the real validate step on good artifacts and on damaged ones; each must be told for what it is."""

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.proof.damages import BASE, BOS, DAMAGES, FINE_TUNE, Others
from tests.proof.press import Press, failed_gates
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
    "lfm2_moe": ("cpu-int4", "cpu-fp16"),
    "ernie4_5": ("cpu-int4-small",),
}
RELATED = {"llama-untied": ("cpu-int4",), "with-bos": ("cpu-int4",), "llama-adapter": ("cpu-int4", "cpu-int8")}
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
    with _own_words() as say:
        family = make_family(directory / "family", lambda phase, share: None, "small")
        proof = Proof(Press(directory / "press"), family, chosen.only, say)
        wrong = [name for name, is_right in (*proof.good(), *proof.damaged()) if not is_right]
        say(f"{proof.count} artifacts, {len(wrong)} judged wrongly{': ' if wrong else ''}{'; '.join(wrong)}")
    if chosen.directory is None:
        shutil.rmtree(directory)
    return 1 if wrong else 0


class Proof:
    """The cases, and how many were tried."""

    def __init__(self, press: Press, family: Family, only: str, say: Callable[[str], None]) -> None:
        self._press, self._only, self._say = press, only, say
        self.count = 0
        sources = [press.of_family(family, name) for name in (*TRAINED, "base")]
        sources += [press.random(name) for name in RANDOM]
        sources += [press.random("llama", tied=False), press.random_with_bos()]
        sources.append(press.random_adapter(press.random("llama")))
        self._sources = {source.name: source for source in sources}

    def good(self) -> Iterator[tuple[str, bool]]:
        """Each sound artifact, and whether it passed."""
        recipes = dict.fromkeys(TRAINED, ALL_RECIPES) | RANDOM | RELATED
        for name, recipe in ((name, recipe) for name, chosen in recipes.items() for recipe in chosen):
            case = f"good: {name} {recipe}"
            if self._only in case:
                yield case, self._is_right(case, name, self._press.package(self._sources[name], recipe), None)

    def damaged(self) -> Iterator[tuple[str, bool]]:
        """Each damage to each victim, and whether its gate saw it."""
        for name, recipe in VICTIMS:
            others = self._others(name, recipe)
            for what, damage in DAMAGES.items():
                case = f"{name} {recipe}: {what}"
                missing = damage.needs in (FINE_TUNE, BASE) and getattr(others, damage.needs) is None
                if self._only not in case or missing or (damage.needs == BOS and name != "with-bos"):
                    continue
                artifact = self._press.copy(self._sources[name], recipe, self._press.root / "damaged")
                damage.change(artifact, others)
                yield case, self._is_right(case, name, artifact, damage.gate)
                shutil.rmtree(artifact)

    def _others(self, name: str, recipe: str) -> Others:
        if name not in TRAINED:
            return Others()
        relative = next(other for other in TRAINED if other != name)
        return Others(*(self._press.package(self._sources[each], recipe) for each in (relative, "base")))

    def _is_right(self, case: str, name: str, artifact: Path, gate: str | None) -> bool:
        """Validate, tell it, and say whether the verdict is the right one: `gate` failed, or (None) none did."""
        work = self._press.root / "work"
        started = time.monotonic()
        result = self._press.validate(self._sources[name], artifact, work)
        shutil.rmtree(work)
        failed = failed_gates(result)
        is_right = gate in failed if gate else not failed
        times = (result["report"].get("quality") or {}).get("kl_over_rounding")
        told = "not measured" if times is None else f"{times:g} times rounding"
        self._say(
            f"{'right' if is_right else 'WRONG'} {case}: {', '.join(sorted(failed)) or 'passed'}"
            f" (distance {told}, {time.monotonic() - started:.1f} s)"
        )
        self.count += 1
        return is_right


@contextmanager
def _own_words() -> Iterator[Callable[[str], None]]:
    """A way to print; what the builder, torch and the engine print goes nowhere."""
    with os.fdopen(os.dup(1), "w") as own, Path(os.devnull).open("w") as nowhere:
        for number in (1, 2):
            os.dup2(nowhere.fileno(), number)
        try:
            yield lambda text: print(text, file=own, flush=True)
        except BaseException:
            os.dup2(own.fileno(), 2)
            raise


if __name__ == "__main__":
    sys.exit(main())

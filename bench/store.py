"""What the store costs: putting and laying out a model of 1 GB, against `cp` and `sha256sum` of the same.

    python bench/store.py [--directory DIR] [--rounds 3] [--megabytes 1024]

Prints medians in seconds and their ratio to cp + sha256sum of the same run. The store hashes every byte twice when it
puts (chunk and file) and brings it to the disk; cp leaves it in memory, so `cp + sync` is printed too.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from onnx import TensorProto, helper, save

from olivepress.store import DirectoryStore

TENSOR_BYTES = 1_638_400  # a matrix of a 0.5-billion-parameter model in int4; 655 of them are 1 GB


def make_model(directory: Path, size_bytes: int) -> None:
    """A model directory laid out as the builder does: a small graph and its external data."""
    directory.mkdir()
    tensors = []
    with (directory / "model.onnx.data").open("wb") as data:
        for number in range(size_bytes // TENSOR_BYTES):
            tensor = TensorProto(name=f"weight.{number}", data_type=TensorProto.UINT8, dims=[TENSOR_BYTES])
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": "model.onnx.data", "offset": data.tell(), "length": TENSOR_BYTES}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            data.write(os.urandom(TENSOR_BYTES))
    save(helper.make_model(helper.make_graph([], "bench", [], [], tensors)), directory / "model.onnx")
    (directory / "genai_config.json").write_text("{}")


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def one_round(model: Path, place: Path) -> dict[str, float]:
    """Each way once, on what the page cache holds; leaves `place` empty."""
    files = sorted(model.iterdir())
    store = DirectoryStore(place / "store")
    taken = {
        "cp": seconds(lambda: run("cp", "-r", model, place / "copy")),
        "sync": seconds(lambda: run("sync", *(place / "copy").iterdir())),
        "sha256sum": seconds(lambda: run("sha256sum", *files)),
        "put": seconds(lambda: store.put_directory(model)),
        "put again": seconds(lambda: store.put_directory(model)),
    }
    digest = store.put_directory(model).digest
    taken["materialise"] = seconds(lambda: store.materialise(digest, place / "laid-out"))
    shutil.rmtree(place)
    return taken


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--directory", type=Path, help="a directory on the disk to measure")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--megabytes", type=int, default=1024)
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.directory) as scratch:
        model = Path(scratch) / "model"
        make_model(model, chosen.megabytes * 2**20)
        rounds = [one_round(model, Path(scratch) / "round") for _ in range(chosen.rounds)]
    taken = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    plain = taken["cp"] + taken["sha256sum"]
    taken = {"cp + sha256sum": plain, "cp + sync + sha256sum": plain + taken["sync"], **taken}
    for name, value in taken.items():
        print(f"{name:<22} {value:6.2f} s   {value / plain:5.2f}")  # noqa: T201


if __name__ == "__main__":
    main()

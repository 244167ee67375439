"""Memory of this process, in bytes.

Resident set size (RSS): the part of the process that lies in RAM, the Python interpreter and the engine's libraries
(about 60 MB) included; nothing is subtracted. It is meant to be taken in a process that does nothing else: see
workers.measures.clean_process.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from workers.measures.spread import theil_sen

STATUS = Path("/proc/self/status")
KIB = 1024
FP32_BYTES = 4
LEAST_SPREAD_BYTES, SPREAD_SHARE = 4 * 2**20, 0.03


def rss_bytes() -> int:
    """RSS now. Source: proc_pid_status(5), VmRSS; elsewhere psutil."""
    if STATUS.exists():
        return _status("VmRSS")
    return int(psutil.Process().memory_info().rss)


def peak_rss_bytes() -> int:
    """The highest RSS since this program began.

    Source: proc_pid_status(5), VmHWM. Not getrusage(2): its ru_maxrss survives exec, so a process that a large one
    started would report the large one's memory.
    """
    if STATUS.exists():
        return _status("VmHWM")
    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))


def _status(field: str) -> int:
    match = re.search(
        rf"^{field}:\s+(\d+) kB$", STATUS.read_text(encoding="ascii", errors="replace"), flags=re.MULTILINE
    )
    if match is None:
        raise RuntimeError(f"{STATUS} has no {field}")
    return int(match[1]) * KIB


def rss_spread(rss: int) -> int:
    """By how many bytes RSS of the same model may differ between processes: where the system places and keeps pages."""
    return max(LEAST_SPREAD_BYTES, round(SPREAD_SHARE * rss))


def cache_bytes_per_token(genai_config: Mapping[str, Any], element_bytes: int = FP32_BYTES) -> int | None:
    """What the key-value cache needs for each token, two tensors a layer; None where genai_config.json is silent.

    Source: Shazeer, "Fast Transformer Decoding" (2019), equation of the cache's size.
    """
    decoder = (genai_config.get("model") or {}).get("decoder") or {}
    sizes = [decoder.get(key) for key in ("num_hidden_layers", "num_key_value_heads", "head_size")]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return None
    layers, heads, head_size = (int(size) for size in sizes if size)
    return 2 * layers * heads * head_size * element_bytes


def cache_growth(entries: Sequence[Mapping[str, Any]], calculated: int | None) -> dict[str, Any]:
    """By how much memory grows with each token of a session.

    Method: RSS while a session of each length (workers.measures.latency) is open, against its tokens; the slope is
    Theil and Sen's. It holds what the engine needs beside the cache, too, such as the logits of the prompt.

    Returns:
        {"calculated_bytes_per_token", "measured_bytes_per_token": None with fewer than two lengths}
    """
    points = [(entry["prompt_tokens"], entry["rss_bytes"]) for entry in entries if entry["rss_bytes"]]
    measured = None
    if len(points) >= 2:
        slope = theil_sen([rss for _, rss in points], [float(tokens) for tokens, _ in points])["slope"]
        measured = max(0, round(slope))
    return {"calculated_bytes_per_token": calculated, "measured_bytes_per_token": measured}

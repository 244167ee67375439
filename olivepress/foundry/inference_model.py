"""What Foundry Local calls a model version, the files it reads beside the weights, and its older rules of discovery."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from olivepress.errors import BadArtifact, BadManifest
from olivepress.recipes.recipe import FoundrySettings
from olivepress.registry import RESERVED_ON_WINDOWS

INFERENCE_MODEL_FILE = "inference_model.json"
GENAI_CONFIG_FILE = "genai_config.json"
SUMS_FILE = "SHA256SUMS"
UNFINISHED_FILE = "download.tmp"
"""A directory with a file of this name is taken for a download that has not ended, and is not listed."""

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*")
MODEL_ID = re.compile(r"(?P<name>[a-zA-Z0-9][a-zA-Z0-9._-]*):(?P<number>0|[1-9][0-9]*)")
MAX_NAME_CHARACTERS = 128
SUM_LINE = re.compile(r"(?P<sha256>[0-9a-f]{64}) [ *](?P<path>[^\r\n]+)")
# Without max_tokens Foundry Local 2.2 reserves this many tokens for the answer and refuses what does not fit.
DEFAULT_OUTPUT_TOKENS = 2048


def foundry_name(model: str, number: int) -> str:
    """The id of a model version in Foundry Local, such as "support-en-int4:1".

    Raises:
        BadManifest: the name is not one that Foundry Local and every file system take, or the number is not positive.
    """
    if not NAME.fullmatch(model) or len(model) > MAX_NAME_CHARACTERS:
        raise BadManifest(
            f"'{model}' cannot be a name in Foundry Local; use at most {MAX_NAME_CHARACTERS} letters, digits, '.', '_' "
            "and '-', starting with a letter or digit"
        )
    if model.endswith(".") or ".." in model or model.split(".")[0].lower() in RESERVED_ON_WINDOWS:
        raise BadManifest(f"'{model}' cannot be a name in Foundry Local because Windows has no such folder; rename it")
    if number < 1:
        raise BadManifest(f"version {number} of '{model}' cannot be in Foundry Local; versions count from 1")
    return f"{model}:{number}"


def fitting(settings: FoundrySettings, context_length: int) -> FoundrySettings:
    """The settings with a `max_length` that the model has room for; both in tokens."""
    return replace(settings, max_length=min(settings.max_length, context_length))


def inference_model_json(
    *, model: str, number: int, description: str, prompt_template: Mapping[str, str] | None, foundry: FoundrySettings
) -> dict[str, Any]:
    """The content of inference_model.json, in the order in which people read it.

    Args:
        prompt_template: left out where None: it could not be derived.
        foundry: as `fitting` gives them, so that they agree with genai_config.json.

    Raises:
        BadManifest: the name or number is not legal in Foundry Local.
    """
    content: dict[str, Any] = {
        "Name": foundry_name(model, number),
        "Description": description,
        "Version": f"{number}.0",
    }
    if prompt_template is not None:
        content["PromptTemplate"] = dict(prompt_template)
    content["ModelConfig"] = {
        "max_length": foundry.max_length,
        "temperature": foundry.temperature,
        "top_p": foundry.top_p,
        "repetition_penalty": foundry.repetition_penalty,
    }
    return content


def sums_text(sha256_of: Mapping[str, str]) -> str:
    """The text of SHA256SUMS, as sha256sum(1) writes and checks it, for relative posix paths and hex digests."""
    return "".join(f"{sha256}  {path}\n" for path, sha256 in sorted(sha256_of.items()))


def read_sums(text: str) -> dict[str, str]:
    """Relative path → hex digest, as `sums_text` wrote them.

    Raises:
        BadArtifact: a line is no checksum, or names a file outside the directory.
    """
    sums = {}
    for line in text.splitlines():
        match = SUM_LINE.fullmatch(line)
        parts = match["path"].split("/") if match else []
        if match is None or "" in parts or ".." in parts or "\\" in match["path"] or ":" in match["path"]:
            raise BadArtifact(f"{SUMS_FILE} has a line that is no checksum of a file beside it; get this version again")
        sums[match["path"]] = match["sha256"]
    return sums


@dataclass(frozen=True)
class Scan:
    """What the older discovery (Foundry Local up to 2.0.1) makes of a cache directory.

    `directories` maps an id to every directory that declares it: of two, the runtime shows one and hides the other.
    """

    directories: Mapping[str, tuple[Path, ...]]
    problems: tuple[str, ...]


def scan_rules(cache_dir: Path) -> Scan:
    """Apply the older discovery's rules to a cache directory; used as a check, since newer runtimes ignore them.

    Rules (sdk_v2/cpp/src/catalog/local_model_scanner.cc): below each directory of the cache, one that holds
    genai_config.json and inference_model.json and no download.tmp is a model; nothing below it is looked at. Its id is
    `Name`, with ":0" where that has no ":"; of two with one id the last one read wins silently.
    """
    directories: dict[str, tuple[Path, ...]] = {}
    problems = []
    for directory in _model_directories(cache_dir, is_cache=True):
        try:
            model_id = declared_id(directory)
        except BadArtifact as error:
            problems.append(str(error))
            continue
        directories[model_id] = (*directories.get(model_id, ()), directory)
    for model_id, found in directories.items():
        if len(found) > 1:
            places = " and ".join(str(directory) for directory in found)
            problems.append(f"'{model_id}' is the Name of {places}; older versions of Foundry Local show only one")
    return Scan(directories, tuple(problems))


def _model_directories(directory: Path, *, is_cache: bool) -> Iterator[Path]:
    is_model = all((directory / name).exists() for name in (GENAI_CONFIG_FILE, INFERENCE_MODEL_FILE))
    if is_model and not is_cache and not (directory / UNFINISHED_FILE).exists():
        yield directory
        return
    if directory.is_dir():
        for child in sorted(directory.iterdir()):
            if child.is_dir():
                yield from _model_directories(child, is_cache=False)


def declared_id(directory: Path) -> str:
    """The id under which the older discovery lists this model directory.

    Raises:
        BadArtifact: inference_model.json has no Name, or one that is no id.
    """
    path = directory / INFERENCE_MODEL_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    name = content.get("Name") if isinstance(content, dict) else None
    if not isinstance(name, str) or not name:
        raise BadArtifact(f"{path} has no Name, so older versions of Foundry Local do not list it")
    model_id = name if ":" in name else f"{name}:0"
    if not MODEL_ID.fullmatch(model_id):
        raise BadArtifact(f"{path} has the Name '{name}', which is no name and version such as 'support-en-int4:1'")
    return model_id

"""What the native runtimes say when they refuse, without places in their sources and on our disks."""

import re
from pathlib import Path

LONGEST_CHARACTERS = 400
# "search_options.cc:108 int fl::Validate(int64_t, int) request requires ...": the words after the signature. Signatures
# of onnxruntime nest too deep for that; there the words come after its error class.
ORT_PLACE = re.compile(r"\S+\.(?:cc|cpp|h):\d+ .*\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
PLACE = re.compile(r"\S+\.(?:cc|cpp|h):\d+ [^()]*\([^()]*\)(?: const)?:? ")
BARE_PLACE = re.compile(r"\S+\.(?:cc|cpp|h):\d+ ")


def native_words(error: Exception, artifact: Path | None = None) -> str:
    """One line of at most LONGEST_CHARACTERS; paths inside `artifact` become relative to it."""
    text = " ".join(str(error).split()) or type(error).__name__
    if artifact is not None:
        for root in {str(artifact), str(artifact.resolve())}:
            text = text.replace(root + "/", "").replace(root, "the model directory")
    for pattern in (ORT_PLACE, PLACE, BARE_PLACE):
        text = pattern.sub("", text)
    return text if len(text) <= LONGEST_CHARACTERS else text[: LONGEST_CHARACTERS - 1] + "…"

"""How the toolchain says that it found no memory: each library in words of its own. Pure."""

import errno
import re

# What was seen: torch ("DefaultCPUAllocator: can't allocate memory", "CUDA out of memory"), onnxruntime ("Failed to
# allocate memory for requested buffer of size", or "std::bad_alloc" where it has no arena), C++ that nobody caught,
# Rust and the C library ("Cannot allocate memory"), and Python in a process of its own, by its traceback.
WORDS = (
    "can't allocate memory",
    "Cannot allocate memory",
    "CUDA out of memory",
    "Failed to allocate memory",
    "std::bad_alloc",
)
# The last line of a traceback, with numpy's subclass.
TRACEBACK = re.compile(r"^(?:[\w.]+\.)?(?:_Array)?MemoryError(?::|$)", re.MULTILINE)
LAST_LINES = 30


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this exception, or one that led to it, says that no memory was to be had."""
    seen: set[int] = set()
    problem: BaseException | None = error
    while problem is not None and id(problem) not in seen:
        seen.add(id(problem))
        if isinstance(problem, MemoryError) or (isinstance(problem, OSError) and problem.errno == errno.ENOMEM):
            return True
        if says_so(str(problem)):
            return True
        problem = problem.__cause__ or problem.__context__
    return False


def says_so(text: str) -> bool:
    """Whether the last lines of what was printed say it."""
    last = "\n".join(text.split("\n")[-LAST_LINES:])
    return any(words in last for words in WORDS) or TRACEBACK.search(last) is not None

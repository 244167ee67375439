"""What the toolchain says when it finds no memory, word for word as it was seen, and what only sounds like it."""

import errno

import pytest

from olivepress.errors import ConversionFailed
from workers.out_of_memory import is_out_of_memory, says_so

TORCH = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000000000 bytes. Error code 12 (Cannot allocate memory)"
)
ARENA = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running ConstantOfShape node. Name:'' Status "
    "Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:360 void* onnxruntime::BFCArena::"
    "AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Failed to allocate memory for requested buffer of size 4\n"
)
NO_ARENA = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running ConstantOfShape node. "
    "Name:'' Status Message: std::bad_alloc"
)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7.11 PiB for an array with shape (1000000000000000,) and data type float64"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError(TORCH),
        RuntimeError(ARENA),
        RuntimeError(NO_ARENA),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
    ids=lambda error: str(error)[:30],
)
def test_each_librarys_words_are_understood_also_below_our_own_error(error: Exception) -> None:
    assert is_out_of_memory(error)
    with pytest.raises(ConversionFailed) as caught:
        try:
            raise error
        except type(error) as cause:
            raise ConversionFailed("building int4 failed; see the log") from cause
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), OSError(errno.ENOSPC, "No space left"), ValueError("memory")]
)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_an_error_that_leads_to_itself_is_looked_at_once() -> None:
    error = ValueError("x")
    other = ValueError("y")
    error.__context__, other.__context__ = other, error
    assert not is_out_of_memory(error)


def test_a_log_says_so_in_its_last_lines_only() -> None:
    assert says_so("Traceback (most recent call last):\nMemoryError")
    assert says_so("terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc")
    assert not says_so("a retry after std::bad_alloc\n" + "and then it worked\n" * 50)
    assert not says_so("MemoryErrors are caught here: no MemoryError")

"""The end of a log that grows: the last lines, how many there were, and what no terminal or database could take."""

from pathlib import Path

import pytest

from workers.attempt_log import LONGEST_LINE_BYTES, TAIL_BYTES, TAIL_LINES, AttemptLog


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "attempt.log"


def added(file: Path, content: bytes) -> None:
    with file.open("ab") as stream:
        stream.write(content)


def finished(file: Path, *pieces: bytes) -> AttemptLog:
    """The log after these pieces, with a look after each."""
    log = AttemptLog(file)
    for piece in pieces:
        added(file, piece)
        log.read()
    log.finish()
    return log


def test_a_log_that_nobody_has_written_to_is_empty(file: Path) -> None:
    log = AttemptLog(file)
    log.finish()
    assert (log.tail(), log.lines) == ("", 0)


def test_a_line_counts_when_it_is_whole_and_the_last_one_at_the_end(file: Path) -> None:
    log = AttemptLog(file)
    added(file, b"one\ntw")
    log.read()
    assert (log.tail(), log.lines) == ("one", 1)
    added(file, b"o\nthree")
    log.read()
    assert (log.tail(), log.lines) == ("one\ntwo", 2)
    log.finish()
    log.finish()
    assert (log.tail(), log.lines) == ("one\ntwo\nthree", 3)


def test_only_the_last_lines_are_kept_and_all_are_counted(file: Path) -> None:
    log = finished(file, b"".join(b"%d\n" % number for number in range(1000)))
    assert log.lines == 1000
    assert log.tail().split("\n") == [str(number) for number in range(1000 - TAIL_LINES, 1000)]


def test_the_tail_has_a_limit_in_bytes_also_where_characters_take_several(file: Path) -> None:
    log = finished(file, ("é" * 1000 + "\n").encode() * TAIL_LINES)
    assert TAIL_BYTES - 2001 < len(log.tail().encode()) <= TAIL_BYTES


@pytest.mark.parametrize(
    "pieces",
    [
        [b"start\n 10%\r 20%\r 30%\rdone\nend\n"],
        [b"start\n 10%\r", b" 20%\r", b" 30%", b"\rdone", b"\n", b"end\n"],
        [b"start\r\n 10%\rdone\r\nend\r\n"],
        [b"start\r", b"\n", b" 10%\rdone\r", b"\nend\r\n"],
    ],
)
def test_what_is_drawn_over_itself_is_one_line(file: Path, pieces: list[bytes]) -> None:
    log = finished(file, *pieces)
    assert (log.tail(), log.lines) == ("start\ndone\nend", 3)


def test_a_progress_line_without_an_end_stays_small_and_shows_what_was_drawn_last(file: Path) -> None:
    log = AttemptLog(file)
    for number in range(2000):
        added(file, b"\r%d of 2000" % number)
        log.read()
    assert log.lines == 0
    assert len(log._line) < 100
    log.finish()
    assert (log.tail(), log.lines) == ("1999 of 2000", 1)


def test_a_line_that_never_ends_is_cut(file: Path) -> None:
    log = finished(file, *[b"x" * 100_000] * 20, b"\nnext\n")
    first, second = log.tail().split("\n")
    assert first == "x" * LONGEST_LINE_BYTES + "…"
    assert (second, log.lines) == ("next", 2)


def test_neither_nul_nor_broken_utf_8_comes_through(file: Path) -> None:
    log = finished(file, b"a\x00b \xff\xfe c\n" + "ü".encode()[:1] + b"\n")
    assert log.tail() == "ab \ufffd\ufffd c\n\ufffd"


def test_a_character_that_is_written_in_two_pieces_is_whole(file: Path) -> None:
    assert finished(file, "ü".encode()[:1], "ü".encode()[1:] + b"\n").tail() == "ü"


def test_a_file_that_was_emptied_is_read_from_its_beginning(file: Path) -> None:
    log = finished(file, b"a long first line\n")
    file.write_bytes(b"new\n")
    log.read()
    assert (log.tail(), log.lines) == ("a long first line\nnew", 2)

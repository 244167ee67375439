"""What the commands that read the whole store say meanwhile, and whom they refuse."""

import os
from pathlib import Path

import pytest

from olivepress.cli.store_check import refuse_for_root
from olivepress.cli.store_progress import LINE_EVERY_S, Lines
from olivepress.errors import NotAllowed
from olivepress.settings import Settings

GB = 10**9


def test_a_line_now_and_then_says_how_long_the_rest_takes(capsys: pytest.CaptureFixture[str]) -> None:
    # given a check that goes on at 3 GB where an earlier one was, and reads 0.1 GB a second
    now_s = [100.0]
    lines = Lines("checking", clock=lambda: now_s[0])
    lines.show(3 * GB, 10 * GB)
    # when
    for second in range(1, 46):
        now_s[0] = 100.0 + second
        lines.show(3 * GB + second * GB // 10, 10 * GB)
    # then
    assert LINE_EVERY_S == 30
    assert capsys.readouterr().err.splitlines() == ["checking: 6.00 GB of 10.0 GB, 40.0 s left"]


def test_root_does_not_repair_what_belongs_to_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(store_dir=tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    real = tmp_path.stat()

    class Status:
        st_uid = 1234

    monkeypatch.setattr(Path, "stat", lambda path, **_: Status() if path == tmp_path else real)
    with pytest.raises(NotAllowed, match=r"belongs to user 1234; run this as that user"):
        refuse_for_root(settings)

    Status.st_uid = 0
    refuse_for_root(settings)


def test_whoever_owns_the_store_may_repair_it(tmp_path: Path) -> None:
    refuse_for_root(Settings(store_dir=tmp_path))
    refuse_for_root(Settings(store_dir=tmp_path / "not-there-yet"))
    refuse_for_root(Settings(store_url="s3://bucket"))

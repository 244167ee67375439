"""Commands with commands of their own: each of those has examples, and a form for scripts."""

import pytest

from olivepress.cli import run

COMMANDS = ["keys show", "keys trust", "keys rotate", "quotas show", "quotas set"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_a_group_has_examples_and_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*name.split(), "--help"]) == 0

    shown = capsys.readouterr().out
    assert f"olivepress {name}" in shown.partition("Example")[2]
    assert "--json" in shown


@pytest.mark.parametrize("group", ["keys", "quotas"])
def test_a_groups_help_lists_its_commands(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([group, "--help"]) == 0

    shown = capsys.readouterr().out
    assert all(name.split()[1] in shown for name in COMMANDS if name.startswith(group))

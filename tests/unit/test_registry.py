"""Names of models, aliases and versions; what speaks against a version; where going back leads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from olivepress.errors import BadManifest
from olivepress.recipes.recipe import recipe_named
from olivepress.registry import (
    MoveCause,
    Order,
    PastMove,
    Standing,
    VerdictKind,
    VersionFlag,
    check_model_name,
    earlier_target,
    model_name,
    model_suffixes,
    name_from_directory,
    parse_reference,
    verdict_of,
)

PUBLISHED, PROMOTED, BACK, DELETED = MoveCause.PUBLISHED, MoveCause.PROMOTED, MoveCause.ROLLED_BACK, MoveCause.DELETED


def test_a_model_is_named_after_its_checkpoint_and_precision() -> None:
    assert model_name("support-en", "int4") == "support-en-int4"


def test_recipes_of_one_precision_in_a_batch_publish_under_names_of_their_own() -> None:
    alone = [recipe_named("cpu-int4-128"), recipe_named("cpu-int8")]
    assert model_suffixes(alone) == {"cpu-int4-128": "int4", "cpu-int8": "int8"}
    several = [recipe_named("cpu-int4"), *alone]
    assert model_suffixes(several) == {"cpu-int4": "int4", "cpu-int4-128": "int4-128", "cpu-int8": "int8"}


@pytest.mark.parametrize(
    "name", ["", "Support", "a b", "a/b", "-a", "a.", "a:1", "a..b", "x" * 101, "con", "nul.x", "ä"]
)
def test_a_name_that_a_file_system_could_not_hold_is_refused(name: str) -> None:
    with pytest.raises(BadManifest, match="cannot be a model name"):
        check_model_name(name)


@pytest.mark.parametrize(
    ("directory", "name"),
    [("Support EN", "support-en"), ("checkpoint-500", "checkpoint-500"), ("..", "checkpoint"), ("Läufe", "l-ufe")],
)
def test_a_folder_gives_a_legal_name(directory: str, name: str) -> None:
    assert name_from_directory(directory) == name
    check_model_name(name)


def test_a_version_is_named_by_number_by_alias_or_as_the_latest() -> None:
    assert parse_reference("m:3").number == 3
    assert parse_reference("m@production").alias == "production"
    assert parse_reference("m").alias == "latest"


@pytest.mark.parametrize("text", ["m:", "m:0", "m:01", "m:x", "m@", "m@A", ":3"])
def test_what_names_no_version_is_refused(text: str) -> None:
    with pytest.raises(BadManifest):
        parse_reference(text)


def test_force_without_a_reason_is_refused() -> None:
    with pytest.raises(BadManifest, match="needs a reason"):
        Order("anna", is_forced=True)


@pytest.mark.parametrize("text", ["", "  ", "two\nlines", "x" * 501, "\x1b[31m"])
def test_a_reason_is_one_printable_line(text: str) -> None:
    with pytest.raises(BadManifest, match="a reason is one line"):
        Order("anna", text)


def test_every_flag_speaks_against_a_version_and_says_why() -> None:
    for flag in VersionFlag:
        (said,) = Standing("m:1", {flag.value: {"reason": "runtime 2.3", "flagged_at": 1.0}}).objections()
        assert said.endswith("(runtime 2.3)")
    assert Standing("m:1").objections() == []


def test_the_verdict_of_a_report_is_that_of_its_gates() -> None:
    passed, failed, other = ({"verdict": verdict} for verdict in ("passed", "failed", "not_binding"))
    assert verdict_of({"gates": [passed, other]}) is VerdictKind.PASSED
    assert verdict_of({"gates": [passed, failed]}) is VerdictKind.FAILED
    assert verdict_of({}) is VerdictKind.NOT_MEASURED


@given(st.lists(st.sampled_from(["a", "b", "c", "back"]), max_size=30))
def test_going_back_undoes_the_last_move_that_was_not_undone(orders: list[str]) -> None:
    ids = {"a": 1, "b": 2, "c": 3}
    moves, undo = list[PastMove](), list[int]()
    for order in orders:
        if order == "back":
            target = earlier_target(moves, kept=ids.values())
            assert target == (undo[-2] if len(undo) > 1 else None)
            if target is not None:
                undo.pop()
                moves.append(PastMove(BACK, target))
        elif not undo or undo[-1] != ids[order]:
            # A move to where it is already is none.
            undo.append(ids[order])
            moves.append(PastMove(PROMOTED, ids[order]))


@pytest.mark.parametrize(
    ("moves", "target"),
    [
        ([(PUBLISHED, 1)], None),
        ([(PUBLISHED, 1), (PROMOTED, 2)], 1),
        ([(PROMOTED, 1), (PROMOTED, 2), (PROMOTED, 3), (BACK, 2)], 1),
        ([(PROMOTED, 1), (PROMOTED, 2), (BACK, 1)], None),
        ([(PROMOTED, 1), (PROMOTED, 2), (BACK, 1), (PROMOTED, 3)], 1),
        ([(PROMOTED, 1), (PROMOTED, 2), (PROMOTED, 1)], 2),
        # Its version was deleted, and it was given away anew.
        ([(PROMOTED, 1), (DELETED, None), (PROMOTED, 2)], 1),
        # 9 is deleted: going back passes over it, and going back again goes on from there.
        ([(PROMOTED, 1), (PROMOTED, 2), (PROMOTED, 9), (PROMOTED, 3)], 2),
        ([(PROMOTED, 1), (PROMOTED, 2), (PROMOTED, 9), (PROMOTED, 3), (BACK, 2)], 1),
    ],
)
def test_going_back_leads_to_where_the_alias_pointed_before(moves: list[tuple[MoveCause, int]], target: int) -> None:
    assert earlier_target([PastMove(*move) for move in moves], kept={1, 2, 3}) == target

"""Numbers, aliases, flags, deprecation and deletion of versions; on both databases where they could differ."""

import threading
from typing import Any

import pytest
from sqlalchemy import select, update

from olivepress.database import aliases, deletion, registry_views, retention, version_flags
from olivepress.database.deletion import MARGIN_S
from olivepress.database.sessions import Database
from olivepress.database.tables import AliasRow, ModelRow, VersionRow
from olivepress.errors import BadManifest, Guarded, NotFound, PermanentError
from olivepress.registry import Order, VersionFlag
from tests.integration.database_cases import on_both_databases
from tests.integration.registry_cases import ANNA, FORCE, TEAM, publish, version

WEEK_S = 7 * 86_400.0


def row_of(database: Database, number: int) -> VersionRow:
    with database.read() as session:
        return session.scalars(select(VersionRow).where(VersionRow.number == number)).one()


def pointers(database: Database) -> dict[str, int]:
    with database.read() as session:
        query = select(AliasRow.name, VersionRow.number).join(VersionRow, VersionRow.id == AliasRow.version_id)
        return {name: number for name, number in session.execute(query)}  # noqa: C416  # rows, not tuples


def history(database: Database, alias: str | None = None) -> list[Any]:
    with database.read() as session:
        return aliases.history(session, TEAM, "m-int4", alias)


def promote(database: Database, text: str, alias: str = "production", order: Order = ANNA) -> aliases.Moved:
    with database.write() as session:
        return aliases.promote(session, TEAM, version(text), alias, order)


def back(database: Database, order: Order = ANNA) -> aliases.Moved:
    with database.write() as session:
        return aliases.roll_back(session, TEAM, "m-int4", "production", order)


def flag(database: Database, number: int, name: VersionFlag | str, reason: str = "because") -> None:
    with database.write() as session:
        version_flags.flag(session, row_of(database, number).id, name, reason)


def delete(database: Database, text: str, order: Order = ANNA, grace_s: float = WEEK_S) -> deletion.Deleted:
    with database.write() as session:
        return deletion.delete(session, TEAM, version(text), order, grace_s)


def undelete(database: Database, text: str) -> str:
    with database.write() as session:
        return deletion.undelete(session, TEAM, version(text))


@on_both_databases
class TestNumbers:
    def test_the_same_content_under_one_name_is_the_version_that_exists(self, database: Database) -> None:
        first, again, other = publish(database, "a"), publish(database, "a"), publish(database, "a", name="n-int4")

        assert (first.number, first.is_new, again.number, again.is_new) == (1, True, 1, False)
        assert again.artifact_digest == first.artifact_digest
        assert (other.number, other.is_new) == (1, True)

    def test_publications_at_the_same_time_get_numbers_of_their_own_without_a_gap(self, database: Database) -> None:
        start, numbers, errors = threading.Barrier(8), list[int](), list[BaseException]()

        def work(place: int) -> None:
            start.wait()
            try:
                for part in range(4):
                    # Every content is published by two threads.
                    numbers.append(publish(database, f"{place // 2}-{part}").number)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(place,)) for place in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert errors == []
        assert sorted(numbers) == sorted(2 * list(range(1, 17)))

    def test_a_number_is_never_given_again(self, database: Database) -> None:
        publish(database, "a")
        publish(database, "b")
        delete(database, "m-int4:2", FORCE, grace_s=0)

        assert publish(database, "c").number == 3

    def test_what_was_deleted_is_published_again_as_another_version(self, database: Database) -> None:
        publish(database, "a")
        delete(database, "m-int4:1", FORCE)

        again = publish(database, "a")

        assert (again.number, again.is_new) == (2, True)
        with pytest.raises(PermanentError, match="published again as m-int4:2"):
            undelete(database, "m-int4:1")


class TestPromote:
    @on_both_databases
    def test_it_moves_the_alias_and_keeps_who_when_from_where_and_why(self, database: Database) -> None:
        for content in "ab":
            publish(database, content)
        first = promote(database, "m-int4:1", order=Order("anna", "passed the pilot"))
        second = promote(database, "m-int4@latest")

        assert (first.from_number, first.number, second.from_number, second.number) == (None, 1, 1, 2)
        assert pointers(database) == {"latest": 2, "production": 2}
        moves = history(database, "production")
        told = [(move["from_number"], move["to_number"], move["moved_by"], move["reason"]) for move in moves]
        assert told == [(1, 2, "anna", None), (None, 1, "anna", "passed the pilot")]
        assert moves[0]["moved_at"] >= moves[1]["moved_at"] > 1.7e9
        assert {move["cause"] for move in moves} == {"promoted"}

    def test_publications_are_in_the_history_too(self, database: Database) -> None:
        publish(database, "a")
        publish(database, "b")
        publish(database, "b")

        moves = [(move["cause"], move["from_number"], move["to_number"]) for move in history(database)]
        assert moves == [("published", 1, 2), ("published", None, 1)]

    def test_a_move_to_where_it_is_changes_nothing(self, database: Database) -> None:
        publish(database, "a")
        promote(database, "m-int4:1")

        assert not promote(database, "m-int4:1").is_moved
        assert len(history(database, "production")) == 1

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            (VersionFlag.RECERTIFICATION_FAILED, "failed when it was certified again"),
            (VersionFlag.UNVALIDATED, "imported and never validated"),
            (VersionFlag.FORCED, "published by force"),
            (VersionFlag.DAMAGED, "is damaged"),
        ],
    )
    def test_a_flagged_version_is_refused_unless_by_force_with_a_reason_that_is_kept(
        self, database: Database, name: VersionFlag, said: str
    ) -> None:
        publish(database, "a")
        flag(database, 1, name, "runtime 2.3 crashed")

        with pytest.raises(Guarded, match=rf"{said} \(runtime 2.3 crashed\).*--force"):
            promote(database, "m-int4:1", order=Order("anna", "please"))
        assert pointers(database) == {"latest": 1}
        moved = promote(database, "m-int4:1", order=FORCE)

        assert pointers(database)["production"] == 1
        (move,) = history(database, "production")
        assert (move["moved_by"], move["reason"]) == ("ben", "the customer waits")
        assert said in move["overridden"][0]
        assert list(moved.overridden) == move["overridden"]

    @on_both_databases
    def test_a_flag_that_is_taken_back_does_not_speak_against_it(self, database: Database) -> None:
        publish(database, "a")
        flag(database, 1, "unvalidated")
        with database.write() as session:
            assert version_flags.unflag(session, row_of(database, 1).id, "unvalidated")
            assert not version_flags.unflag(session, row_of(database, 1).id, VersionFlag.FORCED)

        assert promote(database, "m-int4:1").is_moved

    def test_a_deprecated_version_is_refused_and_its_successor_is_named(self, database: Database) -> None:
        for content in "ab":
            publish(database, content)
        with database.write() as session:
            version_flags.deprecate(session, TEAM, version("m-int4:1"), Order("anna", "too terse"), "m-int4:2")

        with pytest.raises(Guarded, match=r"deprecated \(too terse; use m-int4:2\)"):
            promote(database, "m-int4:1")
        with database.write() as session:
            assert version_flags.undeprecate(session, TEAM, version("m-int4:1"))
            assert not version_flags.undeprecate(session, TEAM, version("m-int4:1"))
        assert promote(database, "m-int4:1").is_moved

    def test_a_deleted_version_is_refused_also_by_force(self, database: Database) -> None:
        for content in "ab":
            publish(database, content)
        delete(database, "m-int4:1")

        with pytest.raises(NotFound, match="deleted by anna"):
            promote(database, "m-int4:1", order=FORCE)

    @pytest.mark.parametrize("alias", ["Production", "1", "a b", ""])
    def test_a_name_that_no_alias_may_have_is_refused(self, database: Database, alias: str) -> None:
        publish(database, "a")
        with pytest.raises(BadManifest, match="cannot be an alias"):
            promote(database, "m-int4:1", alias)


class TestPublishedAlias:
    def test_a_publication_with_something_against_it_leaves_the_alias_where_it_is(self, database: Database) -> None:
        publish(database, "a")
        forced = publish(database, "b", flags={VersionFlag.FORCED: "2 of 8 prompts"})

        assert (forced.number, pointers(database)) == (2, {"latest": 1})
        assert "published by force (2 of 8 prompts)" in forced.objections[0]

    def test_content_that_was_flagged_does_not_take_the_alias_by_being_published_again(
        self, database: Database
    ) -> None:
        for content in "ab":
            publish(database, content)
        flag(database, 1, VersionFlag.RECERTIFICATION_FAILED)

        assert publish(database, "a", alias="production").number == 1
        assert pointers(database) == {"latest": 2}


class TestBack:
    @on_both_databases
    def test_it_undoes_one_move_after_the_other(self, database: Database) -> None:
        for content in "abc":
            publish(database, content)
        for number in (1, 2, 3):
            promote(database, f"m-int4:{number}")

        assert [back(database).number, back(database).number] == [2, 1]
        with pytest.raises(NotFound, match="no other version"):
            back(database)
        promote(database, "m-int4:3")
        assert back(database).number == 1
        assert [move["cause"] for move in history(database, "production")][:2] == ["rolled_back", "promoted"]

    def test_deleted_versions_are_passed_over(self, database: Database) -> None:
        for content in "abc":
            publish(database, content)
        for number in (1, 2, 3):
            promote(database, f"m-int4:{number}")
        delete(database, "m-int4:2")

        assert back(database).number == 1

    def test_it_is_guarded_too(self, database: Database) -> None:
        for content in "ab":
            publish(database, content)
        promote(database, "m-int4:1")
        promote(database, "m-int4:2")
        flag(database, 1, VersionFlag.RECERTIFICATION_FAILED)

        with pytest.raises(Guarded, match="certified again"):
            back(database)
        assert back(database, FORCE).number == 1

    def test_without_such_an_alias_it_says_so(self, database: Database) -> None:
        publish(database, "a")
        with pytest.raises(NotFound, match="has no alias 'production'"):
            back(database)


class TestDeprecate:
    @on_both_databases
    def test_who_when_why_and_what_instead_are_kept(self, database: Database) -> None:
        for content in "ab":
            publish(database, content)
        with database.write() as session:
            version_flags.deprecate(session, TEAM, version("m-int4:1"), Order("anna", "too terse"), "m-int4@latest")
        with database.read() as session:
            told = registry_views.version(session, TEAM, version("m-int4:1"))["deprecated"]

        assert told.pop("deprecated_at") > 1.7e9
        assert told == {"deprecated_by": "anna", "reason": "too terse", "successor": "m-int4@latest"}

    @pytest.mark.parametrize(
        ("order", "successor", "error", "match"),
        [
            (Order("anna"), None, BadManifest, "say why"),
            (Order("anna", "old"), "m-int4:9", NotFound, "no version m-int4:9"),
            (Order("anna", "old"), "m-int4:1", BadManifest, "name another one"),
        ],
    )
    def test_without_a_reason_or_with_a_successor_that_is_none_nothing_is_changed(
        self, database: Database, order: Order, successor: str | None, error: type[Exception], match: str
    ) -> None:
        publish(database, "a")
        with pytest.raises(error, match=match), database.write() as session:
            version_flags.deprecate(session, TEAM, version("m-int4:1"), order, successor)
        assert row_of(database, 1).deprecated_at is None


class TestFlag:
    def test_an_unknown_flag_or_version_is_named(self, database: Database) -> None:
        publish(database, "a")
        with pytest.raises(BadManifest, match="'odd' is no flag"):
            flag(database, 1, "odd")
        with pytest.raises(NotFound, match="id 99"), database.write() as session:
            version_flags.flag(session, 99, VersionFlag.FORCED, "why")

    def test_any_text_of_a_report_becomes_a_reason_of_one_line(self, database: Database) -> None:
        publish(database, "a")
        flag(database, 1, VersionFlag.DAMAGED, "line\n\x1b[31mred\tend " + "x" * 900)

        reason = row_of(database, 1).flags["damaged"]["reason"]
        assert reason.startswith("line [31mred end xxx")
        assert len(reason) == 500


class TestDelete:
    def test_a_version_that_an_alias_points_to_is_refused_and_the_aliases_are_named(self, database: Database) -> None:
        publish(database, "a")
        promote(database, "m-int4:1")

        with pytest.raises(Guarded, match="the aliases 'latest', 'production' point to it"):
            delete(database, "m-int4:1", Order("anna", "please"))
        assert row_of(database, 1).deleted_at is None

    @on_both_databases
    def test_by_force_latest_goes_to_what_is_left_and_other_aliases_go(self, database: Database) -> None:
        for content in "abc":
            publish(database, content)
        flag(database, 2, VersionFlag.DAMAGED)
        promote(database, "m-int4:3")

        assert delete(database, "m-int4:3", FORCE).aliases == {"latest": 1, "production": None}

        assert pointers(database) == {"latest": 1}
        (gone, *_) = history(database, "production")
        told = (gone["cause"], gone["from_number"], gone["to_number"], gone["reason"])
        assert told == ("deleted", 3, None, "the customer waits")

    def test_a_deleted_version_is_gone_for_people_and_its_row_stays(self, database: Database) -> None:
        for content in "ab":
            publish(database, content)
        delete(database, "m-int4:1", Order("anna", "wrong data"))

        with database.read() as session:
            model = registry_views.model(session, TEAM, "m-int4")
            with pytest.raises(NotFound, match=r"deleted by anna; until .* `olivepress undelete m-int4:1` brings it"):
                registry_views.version(session, TEAM, version("m-int4:1"))
        assert [one["number"] for one in model["versions"]] == [2]
        assert (row_of(database, 1).deleted_reason, row_of(database, 1).report) == ("wrong data", {"gates": []})

    @on_both_databases
    def test_it_comes_back_within_the_grace_period_and_not_after(self, database: Database) -> None:
        for content in "ab":
            publish(database, content)
        delete(database, "m-int4:1")
        assert undelete(database, "m-int4:1") == "m-int4:1"
        with pytest.raises(PermanentError, match="is not deleted"):
            undelete(database, "m-int4:1")

        delete(database, "m-int4:1", grace_s=0)
        with pytest.raises(PermanentError, match="grace period of m-int4:1 is over"):
            undelete(database, "m-int4:1")
        with pytest.raises(NotFound, match="grace period is over"), database.read() as session:
            registry_views.version(session, TEAM, version("m-int4:1"))

    @on_both_databases
    def test_its_files_are_claimed_until_the_grace_period_is_over(self, database: Database) -> None:
        kept, gone = publish(database, "a"), publish(database, "b")
        delete(database, "m-int4:2", FORCE)

        def claimed() -> set[str]:
            with database.read() as session:
                return retention.references(session, None)

        assert {kept.artifact_digest, gone.artifact_digest} <= claimed()
        with database.write() as session:
            past = VersionRow.files_until - WEEK_S - MARGIN_S - 1
            session.execute(update(VersionRow).where(VersionRow.number == 2).values(files_until=past))
        assert gone.artifact_digest not in claimed()
        assert kept.artifact_digest in claimed()

    @on_both_databases
    def test_a_deletion_and_a_promotion_at_the_same_time_leave_no_alias_on_a_deleted_version(
        self, database: Database
    ) -> None:
        for content in "ab":
            publish(database, content)
        start, ended = threading.Barrier(2), list[str]()

        def work(change: Any, *refused: type[Exception]) -> None:
            start.wait()
            try:
                change()
            except refused as error:
                ended.append(type(error).__name__)

        threads = [
            threading.Thread(target=work, args=(lambda: delete(database, "m-int4:1"), Guarded)),
            threading.Thread(target=work, args=(lambda: promote(database, "m-int4:1"), NotFound)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(ended) == 1
        assert (row_of(database, 1).deleted_at is None) == ("production" in pointers(database))


def test_other_teams_can_do_nothing_to_a_version(database: Database) -> None:
    publish(database, "a")
    for change in (
        lambda session: aliases.promote(session, "legal", version("m-int4:1"), "production", FORCE),
        lambda session: aliases.history(session, "legal", "m-int4"),
        lambda session: deletion.delete(session, "legal", version("m-int4:1"), FORCE, 0.0),
        lambda session: version_flags.deprecate(session, "legal", version("m-int4:1"), FORCE, None),
    ):
        with pytest.raises(NotFound, match="team 'legal' has no model"), database.write() as session:
            change(session)
    with database.read() as session:
        assert len(session.scalars(select(ModelRow)).all()) == 1

"""`tuning.base.averagings`: which views each average has, and how files of all versions name one."""

import pytest

from tuning.base.averagings import AVERAGINGS, View, named_in, recorded
from tuning.base.errors import UserError


def test_the_views_are_the_image_first_then_others_and_all_different() -> None:
    sizes = [len(each.views) for each in AVERAGINGS.values()]
    assert list(AVERAGINGS) == ["none", "flip", "shift", "flip+shift"] and sizes == [1, 2, 5, 10]
    for each in AVERAGINGS.values():
        assert each.views[0] == View() and len(set(each.views)) == len(each.views)
    assert set(AVERAGINGS["flip"].views) | set(AVERAGINGS["shift"].views) < set(AVERAGINGS["flip+shift"].views)
    assert all(abs(view.down) + abs(view.right) <= 1 for each in AVERAGINGS.values() for view in each.views)


def test_a_sentence_ends_with_what_it_is_and_how_many_views_that_takes() -> None:
    assert [each.phrase for each in AVERAGINGS.values()] == [
        "without averaging",
        "with flip averaging (2 views)",
        "with shift averaging (5 views)",
        "with flip and shift averaging (10 views)",
    ]


@pytest.mark.parametrize("name", AVERAGINGS)
def test_what_is_recorded_is_read_and_version_0_2_0_mirrors_where_a_view_is_mirrored(name: str) -> None:
    assert named_in(recorded(name)) == name
    assert recorded(name)["flip_averaging"] == ("flip" in name)


def test_files_of_version_0_2_0_have_a_boolean() -> None:
    assert [named_in(each) for each in ({"flip_averaging": True}, {"flip_averaging": False}, {})] == [
        "flip",
        "none",
        "none",
    ]


def test_an_unknown_name_is_said_with_its_file() -> None:
    match = r"^a/config.json: averaging must be one of flip, flip\+shift, none, shift, but got 'shfit'\. Did you mean"
    with pytest.raises(UserError, match=match):
        named_in({"averaging": "shfit"}, "a/config.json")
    with pytest.raises(UserError, match=r"^averaging must be one of"):
        recorded("shfit")

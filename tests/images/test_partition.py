"""`tuning.images.partition`: no image, and nobody's images, on two sides of a split; and the test split stays."""

from typing import Any

import numpy as np
import pytest

from tuning.base.errors import UserError
from tuning.images import partition
from tuning.images.partition import Known, conflicts, deal, describe_equals, leaks, n_valid, units_of

NAMES = ("cat", "dog", "bird")


def known(labels: Any, *, given: Any = "", groups: Any = "", digests: Any = None) -> Known:
    n = len(labels)
    digests = [f"{i:032x}" for i in range(n)] if digests is None else digests
    return Known(
        labels=np.asarray(labels),
        class_names=NAMES[: int(np.max(labels)) + 1],
        given=np.broadcast_to(np.asarray(given), (n,)).astype(str),
        groups=np.broadcast_to(np.asarray(groups), (n,)).astype(str),
        digests=np.asarray(digests).astype("S32"),
        names=np.asarray([f"{i}.png" for i in range(n)]),
    )


def some(images: Known, rows: Any) -> Known:
    parts = {name: value[rows] for name, value in vars(images).items() if name != "class_names"}
    return Known(class_names=images.class_names, **parts)


def test_the_test_split_is_about_15_per_cent_of_each_class() -> None:
    images = known(np.arange(6000) % 3)
    parts = partition.partition(images)
    assert sorted([*parts.test, *parts.rest]) == list(range(6000))
    shares = np.bincount(images.labels[parts.test]) / 2000
    assert np.abs(shares - 0.15).max() < 0.03
    assert len(parts.valid) == 0


def test_images_that_are_added_move_none_of_the_old_ones() -> None:
    draw = np.random.default_rng(0)
    images = known(draw.integers(0, 3, 2000), groups=[f"sender {i}" for i in draw.integers(0, 400, 2000)])
    old = np.sort(draw.permutation(2000)[:1200])
    before, now = partition.partition(some(images, old)), partition.partition(images)
    assert set(old[before.test]) == set(old) & set(now.test)


@pytest.mark.parametrize(
    ("labels", "groups", "mixed"), [([0, 1, 1], ["a", "b", "b"], False), ([0, 1, 1], ["a", "a", "b"], True)]
)
def test_images_that_belong_together_may_be_of_several_classes(labels: Any, groups: Any, mixed: bool) -> None:
    images = known(labels, groups=groups)
    rows = np.arange(3)
    assert partition.are_mixed(images, partition.Partition(rows[:0], rows, rows[:0], units_of(images))) == mixed


def test_the_order_of_the_images_decides_nothing() -> None:
    images = known(np.arange(300) % 3)
    order = np.random.default_rng(1).permutation(300)
    shuffled = partition.partition(some(images, order))
    assert sorted(order[shuffled.test]) == list(partition.partition(images).test)


def test_a_unit_is_what_groups_and_equal_pixels_join() -> None:
    groups = ["a", "a", "b", "", "", "", ""]
    digests = ["1", "2", "2", "2", "4", "5", "5"]
    units = units_of(known([0, 1, 0, 1, 0, 1, 1], groups=groups, digests=digests))
    assert len({units[i] for i in range(4)}) == 1  # b and the fourth have the pixels of one of a's.
    assert units[5] == units[6] != units[4] != units[0]


@pytest.mark.parametrize("seed", range(5))
def test_no_unit_is_on_two_sides(seed: int) -> None:
    draw = np.random.default_rng(seed)
    n = 600
    images = known(
        draw.integers(0, 3, n),
        groups=np.where(draw.random(n) < 0.3, "", [f"g{i}" for i in draw.integers(0, 60, n)]),
        digests=[f"{i:x}" for i in draw.integers(0, 500, n)],
    )
    parts = partition.partition(images)
    assert set(parts.units[parts.test]).isdisjoint(parts.units[parts.rest])
    dealt = deal(images.labels[parts.rest], parts.units[parts.rest], [0.2, 0.8], seed)
    mine = parts.units[parts.rest]
    assert set(mine[dealt == 0]).isdisjoint(mine[dealt == 1])


def test_a_small_class_is_in_all_splits_or_named() -> None:
    for seed in range(30):
        digests = [f"{seed:x}{i:030x}" for i in range(43)]
        parts = partition.partition(known([0] * 40 + [1] * 3, digests=digests))
        labels = np.array([0] * 40 + [1] * 3)
        assert (labels[parts.test] == 1).sum() == 1
    with pytest.raises(UserError, match=r"too few images to be in all splits: dog \(2 images\)\. .*--min-images"):
        partition.partition(known([0] * 40 + [1] * 2))
    with pytest.raises(UserError, match=r"dog \(9 images of 1 group\)"):
        partition.partition(known([0] * 40 + [1] * 9, groups=[f"g{i}" for i in range(40)] + ["one"] * 9))


def test_a_given_test_split_is_the_test_split() -> None:
    given = ["train", "valid", "test", ""] * 30
    parts = partition.partition(known(np.arange(120) // 4 % 3, given=given))
    assert list(parts.test) == list(range(2, 120, 4))
    assert list(parts.valid) == list(range(1, 120, 4))


def test_of_a_given_valid_split_none_becomes_test_and_nothing_that_belongs_to_it() -> None:
    given, digests = ["valid"] * 60 + ["train"] * 240, [f"{i % 240:x}" for i in range(300)]
    parts = partition.partition(known(np.arange(300) % 3, given=given, digests=digests))
    assert len(parts.test) and parts.test.min() >= 60
    assert set(parts.units[parts.test]).isdisjoint(parts.units[parts.valid])


@pytest.mark.parametrize(
    ("given", "where"),
    [(["test"] * 3 + ["train"] * 6 + ["test"] * 3, "train"), (["train"] * 9 + ["test"] * 3, "test")],
)
def test_a_class_that_a_given_split_lacks_is_named(given: list[str], where: str) -> None:
    with pytest.raises(UserError, match=f"Each class must have an image in {where}, but .* none. Add images"):
        partition.partition(known([0, 1, 2, 0, 0, 0, 1, 1, 1, 2, 2, 2], given=given))


@pytest.mark.parametrize("shares", [[0.2, 0.8], [0.2] * 5])
def test_each_part_has_its_share_of_each_class(shares: list[float]) -> None:
    draw = np.random.default_rng(3)
    labels = draw.choice(3, 3000, p=[0.6, 0.3, 0.1])
    units = np.where(np.arange(3000) < 1500, draw.integers(0, 300, 3000), 300 + np.arange(3000))
    parts = deal(labels, units, shares, 0)
    for part, share in enumerate(shares):
        counts = np.bincount(labels[parts == part], minlength=3)
        assert np.abs(counts - share * np.bincount(labels)).max() <= 3
    assert not np.array_equal(parts, deal(labels, units, shares, 1))
    assert np.array_equal(parts, deal(labels, units, shares, 0))


def test_the_valid_split_follows_from_the_size() -> None:
    assert [n_valid(n) for n in (10, 800, 2000, 4000, 9000, 60_000, 10**6)] == [2, 160, 400, 500, 900, 5000, 5000]


def test_equal_images_with_two_labels_are_named() -> None:
    images = known([0, 1, 0, 1, 2], digests=["1", "1", "2", "3", "3"])
    assert conflicts(images) == ["0.png (cat) = 1.png (dog)", "3.png (dog) = 4.png (bird)"]
    said = describe_equals(images)
    assert said[0].startswith("2 images repeat another one")
    assert said[1].startswith("2 images have more than one label: 0.png (cat) = 1.png (dog); 3.png")
    assert describe_equals(known([0, 1])) == []


def test_a_given_split_that_leaks_is_said() -> None:
    images = known([0, 1, 0, 1], digests=["1", "2", "1", "4"], groups=["", "p", "", "p"])
    [said] = leaks(images, np.array(["train", "train", "test", "test"]))
    assert said.startswith("The given test split leaks: 1 of its 2 images have the same pixels as one of train and 1 ")
    assert "1 group of it are in train, too" in said
    assert leaks(images, np.array(["train", "train", "train", "test"])) != []
    assert leaks(known([0, 1]), np.array(["train", "test"])) == []


def test_the_odd_images_of_many_small_classes_go_to_all_parts() -> None:
    labels = np.repeat(np.arange(100), 6)
    sizes = np.bincount(deal(labels, np.arange(600), [0.2] * 5, 0))
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(("groups", "said"), [("p", "1: p"), (["p", "q"] * 15, "2: p, q")])
def test_too_few_groups_for_the_splits_are_named(groups: Any, said: str) -> None:
    images = known(np.arange(30) % 3, groups=groups)
    with pytest.raises(
        UserError, match=rf"^The images must be of 3 groups at least, .* are of {said}\. Choose another"
    ):
        partition.partition(images)


def people_who_made_all(n_people: int, n_classes: int, seed: int) -> Known:
    """Returns images of people each of whom made some of every class."""
    draw = np.random.default_rng(seed)
    sizes = draw.integers(1, 20, (n_people, n_classes))
    labels = np.concatenate([np.repeat(np.arange(n_classes), row) for row in sizes])
    people = np.repeat(np.arange(n_people), sizes.sum(axis=1))
    return known(labels, groups=[f"person {seed} {person}" for person in people])


@pytest.mark.parametrize("n_people", [3, 4, 5])
def test_where_groups_lie_across_the_classes_each_class_is_in_train_and_in_valid(n_people: int) -> None:
    for seed in range(40):
        images = people_who_made_all(n_people, 3, seed)
        parts = partition.partition(images)
        labels, units = images.labels[parts.rest], parts.units[parts.rest]
        begun = deal(labels, units, [0.1, 0.9], seed) == 0
        valid = partition.on_both_sides(labels, units, begun, NAMES, seed)
        assert set(labels[valid]) == set(labels[~valid]) == {0, 1, 2}
        assert not set(units[valid]) & set(units[~valid])


def test_a_valid_split_that_has_all_classes_stays_and_one_that_cannot_have_them_is_an_error() -> None:
    labels, units = np.array([0, 1, 0, 1, 0, 1]), np.array([0, 0, 1, 1, 2, 2])
    valid = np.array([True, True, False, False, False, False])
    assert (partition.on_both_sides(labels, units, valid, NAMES, 0) == valid).all()
    # Each class has two units, but two of the three units always have all images of one class.
    labels, units = np.array([0, 1, 1, 2, 0, 2]), np.array([0, 0, 1, 1, 2, 2])
    with pytest.raises(UserError, match=r"^Class '\w+' cannot be in train and in valid: .* --labels-leave-out \w+\.$"):
        partition.on_both_sides(labels, units, np.zeros(6, bool), NAMES, 0)


def test_another_order_of_the_classes_is_tried_where_the_first_one_leads_nowhere() -> None:
    # Class 0 takes unit 3, class 1 unit 1, and both units of class 2 have the last images of another class then.
    labels, units = np.array([1, 2, 2, 1, 0, 2, 0]), np.array([0, 0, 0, 1, 2, 2, 3])
    assert partition._completed(labels, units, np.zeros(7, bool), np.arange(3)) == (None, 2)
    valid = partition.on_both_sides(labels, units, np.zeros(7, bool), NAMES, 0)
    assert set(labels[valid]) == set(labels[~valid]) == {0, 1, 2}


def with_rare_classes(seed: int, more: bool = False) -> Known:
    """Returns images of two large classes in 200 groups, and of three rare ones whose groups lie across each other."""
    draw = np.random.default_rng(seed)
    labels, groups = draw.integers(2, size=1000).tolist(), [f"group {i // 5} {seed}" for i in range(1000)]
    for label in (2, 3, 4):
        labels += [label] * 3
        groups += [f"rare {group} {seed}" for group in draw.choice(5, 3, replace=False)]
    if more:
        labels, groups = [*labels, 2], [*groups, f"rare 9 {seed}"]
    n = len(labels)
    digests, given = np.asarray([f"{i:032x}" for i in range(n)]).astype("S32"), np.full(n, "")
    names = np.asarray([f"{i}.png" for i in range(n)])
    return Known(np.asarray(labels), (*NAMES, "fish", "frog"), given, np.asarray(groups), digests, names)


def test_where_another_order_is_tried_the_splits_keep_their_shares_and_almost_all_of_their_images() -> None:
    n = 0
    for seed in range(60):
        images = with_rare_classes(seed)
        try:
            parts = partition.partition(images)
            labels, units = images.labels[parts.rest], parts.units[parts.rest]
            begun = deal(labels, units, [0.15, 0.85], seed) == 0
            valid = partition.on_both_sides(labels, units, begun, images.class_names, seed)
            now = partition.partition(with_rare_classes(seed, more=True))
        except UserError:  # Three groups of five for each of three classes: that may be too few.
            continue
        n += 1
        assert len(parts.test) > 80 and valid.sum() > 100, seed
        assert set(labels[valid]) == set(labels[~valid]) == set(images.labels[parts.test]) == set(range(5))
        assert not set(units[valid]) & set(units[~valid]) and not set(parts.units[parts.test]) & set(units)
        assert len(set(parts.test) - set(now.test)) <= 9, seed
    assert n > 40


def test_beside_given_valid_images_a_class_needs_one_image_to_train_on_and_one_to_test() -> None:
    given = ["valid"] * 4 + ["train"] * 2 + ["valid"] * 4 + ["train"] * 9
    parts = partition.partition(known([0] * 6 + [1] * 13, given=given))
    rest = np.setdiff1d(parts.rest, parts.valid)
    assert sum(parts.test < 6) == sum(rest < 6) == 1
    with pytest.raises(UserError, match=r"too few images to be in all splits: cat \(1 image\)\."):
        partition.partition(known([0] * 5 + [1] * 13, given=given[:4] + given[5:]))


def test_no_fold_has_all_images_of_a_class() -> None:
    for seed in range(60):
        images = people_who_made_all(4, 3, seed)
        units = units_of(images)
        folds = partition.spread_classes(images.labels, units, deal(images.labels, units, [0.5] * 2, seed), NAMES)
        assert all(set(images.labels[folds != fold]) == {0, 1, 2} for fold in (0, 1))
        assert len(np.unique(np.stack([units, folds]), axis=1).T) == len(np.unique(units))
    labels, units = np.array([0, 0, 1, 1, 0, 1]), np.array([0, 0, 1, 1, 2, 3])
    mended = partition.spread_classes(labels, units, np.array([0, 0, 0, 0, 0, 1]), NAMES)
    assert all(set(labels[mended != fold]) == {0, 1} for fold in (0, 1))
    with pytest.raises(UserError, match=r"^--folds must leave each class images .* but got 2, and all of class 'cat'"):
        partition.spread_classes(np.array([0, 0, 1]), np.array([0, 0, 1]), np.array([0, 0, 1]), NAMES)


def test_copies_of_an_image_are_counted_as_such() -> None:
    labels = [0] * 8 + [1] * 8
    with pytest.raises(
        UserError, match=r"too few images .*: cat \(8 images, 1 different\), dog \(8 images, 1 different\)"
    ):
        partition.partition(known(labels, digests=[str(label) for label in labels]))
    with pytest.raises(UserError, match=r"^Every image is valid, .* Check the split column\.$"):
        partition.partition(known([0, 1] * 6, given="valid"))


def test_another_order_of_the_classes_is_tried_for_the_test_split_too() -> None:
    """In order, the last class would take the unit that leaves another one a single one."""
    labels = [0, 1, 2, 0, 1, 1, 2, 1, 2, 0, 2]
    groups = [f"p61-{person}" for person in (0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4)]
    images = known(labels, groups=groups)
    parts = partition.partition(images)
    assert set(images.labels[parts.test]) == {0, 1, 2}
    assert not set(parts.units[parts.test]) & set(parts.units[parts.rest])
    for label in range(3):
        assert len(np.unique(parts.units[parts.rest[images.labels[parts.rest] == label]])) > 1

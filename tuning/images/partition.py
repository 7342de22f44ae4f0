"""Which images are test, valid and train, such that no split knows an image of another one.

Images belong together where they have the same pixels or the same group (a patient, a sender): such a *unit* lies on
one side of every split that is made here. Nothing here reads a file.
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tuning.base.errors import UserError, counted

TEST_SHARE = 0.15
# The valid split is a tenth, but no more than its accuracy needs: with 5,000 images its standard error is 0.3 %. Of
# images of one's own it has 500 where that leaves four fifths to train on.
VALID_SHARE, FEW_VALID_IMAGES, MOST_VALID_SHARE, MOST_VALID_IMAGES = 0.1, 500, 0.2, 5_000
ORDERS = 20  # Of the classes, that are tried where groups lie across them.
NAMED = 5  # Examples in a message.
WAY_OUT = "Add images of them, or leave them out with --min-images N or --labels-leave-out NAME."

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Known:
    """What is known of N images, as far as it decides on which side of a split they may lie.

    Attributes:
        labels: (N,), in [0, n_classes).
        class_names: By label.
        given: "train", "valid", "test" or "" for each image, (N,): the split that the data set says.
        groups: (N,), "" where an image belongs to none.
        digests: Of the pixels, (N,); equal for equal images.
        names: What a person calls each image, (N,).
    """

    labels: Integers
    class_names: tuple[str, ...]
    given: npt.NDArray[np.str_]
    groups: npt.NDArray[np.str_]
    digests: npt.NDArray[np.bytes_]
    names: npt.NDArray[np.str_]

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.labels)


@dataclass(frozen=True)
class Partition:
    """Rows of the images of a data set.

    Attributes:
        test: Rows that are locked away, ascending.
        rest: The others, ascending.
        valid: Those of the rest that the data set itself gives as valid; empty where it gives none.
        units: (N,); equal for images that belong together.
    """

    test: Integers
    rest: Integers
    valid: Integers
    units: Integers


def partition(known: Known) -> Partition:
    """Returns the test split and the rest: as the data set says, or 15 % that follow from what the images are.

    Whether an image is test depends on a hash of its group or, without one, of its pixels: images that are added later
    move none of the old ones. A class that chance leaves without a test image has the one of its units with the least
    hash. Where the groups of small classes lie across each other, these may be moved by what is added to them.

    Raises:
        UserError: A class cannot be in all splits; it is named.
    """
    units, given = units_of(known), known.given
    if (given == "test").any():
        test = given == "test"
    else:
        free = (given != "valid") & ~np.isin(units, units[given == "valid"])
        test = _hashed(known, units, free)
    rest, valid = np.flatnonzero(~test), np.flatnonzero(given == "valid")
    _check_classes(known, {"test": np.flatnonzero(test)} | ({"valid": valid} if len(valid) else {}))
    if len(valid):
        _check_classes(known, {"train": np.setdiff1d(rest, valid)})
    else:
        _check_classes(known, {"train": rest})
        few = [
            label for label in range(len(known.class_names)) if _n_units(units[rest[known.labels[rest] == label]]) < 2
        ]
        _refuse(known, few, units)
    return Partition(np.flatnonzero(test), rest, valid, units)


def are_mixed(known: Known, parts: Partition) -> bool:
    """Returns whether some images that belong together are of several classes."""
    pairs = np.unique(np.column_stack([parts.units, known.labels]), axis=0)
    return len(pairs) > len(np.unique(parts.units))


def units_of(known: Known) -> Integers:
    """Returns the number of each image's unit, (N,): images of a group, and images with the same pixels, are one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(known)
    own = np.char.add("\0", np.arange(n).astype(str))  # No group's name begins so.
    _, of_group = np.unique(np.where(known.groups == "", own, known.groups), return_inverse=True)
    _, of_pixels = np.unique(known.digests, return_inverse=True)
    # A graph with a node for each group and each distinct image; an image is an edge between its two.
    n_groups = int(of_group.max(initial=-1)) + 1
    nodes = n_groups + int(of_pixels.max(initial=-1)) + 1
    edges = coo_array((np.ones(n, np.int8), (of_group, n_groups + of_pixels)), shape=(nodes, nodes))
    of_node: Integers = connected_components(edges, directed=False)[1].astype(np.int64)
    return of_node[of_group]


def deal(labels: Integers, units: Integers, shares: Sequence[float], seed: int) -> Integers:
    """Returns the part of each image, (N,), such that a unit lies in one part and each class has about these shares.

    Units of several images are dealt first, the largest first, each to the part whose counts it brings nearest to
    their share; single images then fill up each class. `seed` decides between equals.

    Args:
        labels: (N,), in [0, n_classes).
        units: (N,), equal for images that belong together.
        shares: Of all images, one a part; they add up to 1.
        seed: At least 0.
    """
    rng = np.random.default_rng(seed)
    n_classes, n_parts = int(labels.max(initial=-1)) + 1, len(shares)
    total = np.bincount(labels, minlength=n_classes)
    wanted = np.asarray(shares)[:, None] * total
    have, parts = np.zeros((n_parts, n_classes)), np.full(len(labels), -1, np.int64)
    _, number, size = np.unique(units, return_inverse=True, return_counts=True)
    order = rng.permutation(len(size))
    by_unit = np.split(np.argsort(number, kind="stable"), np.cumsum(size)[:-1])
    for unit in order[np.argsort(-size[order], kind="stable")]:
        if size[unit] == 1:
            break
        rows = by_unit[unit]
        more = np.bincount(labels[rows], minlength=n_classes)
        # By how much the squared distance to the share grows, each class weighed by its size, if a part gets the unit.
        worse = ((2 * (have - wanted) + more) * more / np.maximum(total, 1)).sum(axis=1)
        part = int(worse.argmin())
        parts[rows], have[part] = part, have[part] + more
    single = rng.permutation(np.flatnonzero(parts < 0))
    for label in range(n_classes):
        rows = single[labels[single] == label]
        n_before = np.bincount(parts[parts >= 0], minlength=n_parts)
        parts[rows] = _filled(np.maximum(wanted[:, label] - have[:, label], 0), len(rows), n_before / shares)
    return parts


def on_both_sides(labels: Integers, units: Integers, valid: Flags, class_names: Sequence[str], seed: int) -> Flags:
    """Returns which images are valid, (N,), changed as little as it takes for each class to be in valid and in train.

    Train, which is all that is not valid, comes first: a class that it lacks gets its smallest unit back. Then valid
    gets the smallest unit of each class that it lacks which leaves train all classes. Where units lie across classes,
    the order of these may decide whether that can be; then `seed` draws others, which begin with no valid image, and
    those that were valid are again as far as train keeps each class.

    Raises:
        UserError: No way was found; a class that cannot be on both sides is named.
    """
    rng, order = np.random.default_rng(seed), np.unique(labels)
    found, lacking = _completed(labels, units, valid.copy(), order)
    for _ in range(ORDERS):
        if found is not None:
            return found
        found, _ = _completed(labels, units, np.zeros_like(valid), rng.permutation(order))
        found = None if found is None else _filled_up(found, valid, labels, units, leave=1)
    if found is not None:
        return found
    name = class_names[lacking]
    raise UserError(
        f"Class {name!r} cannot be in train and in valid: images that belong together are of several classes, and lie "
        "on one side. Choose another --group-column or --group-pattern, add groups, or leave the class out with "
        f"--labels-leave-out {name}."
    )


def spread_classes(labels: Integers, units: Integers, folds: Integers, class_names: Sequence[str]) -> Integers:
    """Returns the fold of each image, (N,), changed where all images of a class lie in one: what is left lacks it.

    Raises:
        UserError: No move of a unit mends it.
    """
    folds, n_folds = folds.copy(), int(folds.max(initial=-1)) + 1
    have = np.zeros((n_folds, len(class_names)), np.int64)
    np.add.at(have, (folds, labels), 1)
    while len(alone := _in_one_fold(have)):
        label, home = alone[0], int(have[:, alone[0]].argmax())
        for unit, to in itertools.product(
            _by_size(units, labels == label), np.argsort(have.sum(axis=1), kind="stable")
        ):
            rows = units == unit
            moved, more = have.copy(), np.bincount(labels[rows], minlength=len(class_names))
            moved[home], moved[to] = moved[home] - more, moved[to] + more
            if to != home and moved[home].any() and len(_in_one_fold(moved)) < len(alone):
                folds[rows], have = to, moved
                break
        else:
            raise UserError(
                f"--folds must leave each class images to train on, but got {n_folds}, and all of class "
                f"{class_names[label]!r} would be in one. Take more, or --folds 0 for the split that the search had."
            )
    return folds


def n_valid(n: int) -> int:
    """Returns how many of `n` images are to be valid."""
    return min(max(round(n * VALID_SHARE), min(FEW_VALID_IMAGES, round(n * MOST_VALID_SHARE)), 1), MOST_VALID_IMAGES)


def conflicts(known: Known) -> list[str]:
    """Returns the names of equal images with more than one label, an image each: "a.png (cat) = b.png (dog)"."""
    _, number = np.unique(known.digests, return_inverse=True)
    order = np.lexsort((known.labels, number))
    found: dict[int, list[int]] = {}
    for before, row in itertools.pairwise(order):
        if number[before] == number[row] and known.labels[before] != known.labels[row]:
            found.setdefault(int(number[row]), [int(before)]).append(int(row))
    return [
        " = ".join(f"{known.names[row]} ({known.class_names[known.labels[row]]})" for row in rows)
        for rows in found.values()
    ]


def leaks(known: Known, splits: npt.NDArray[np.str_]) -> list[str]:
    """Returns a sentence for each pair of splits that share pixels or a group; only given splits can.

    Args:
        known: The images.
        splits: "train", "valid" or "test" for each, (N,).
    """
    said = []
    for one, other in (("test", "train"), ("test", "valid"), ("valid", "train")):
        mine, theirs = splits == one, splits == other
        same = int(np.isin(known.digests[mine], known.digests[theirs]).sum())
        groups = np.intersect1d(known.groups[mine], known.groups[theirs])
        groups = groups[groups != ""]
        parts = [
            *([f"{same:,} of its {int(mine.sum()):,} images have the same pixels as one of {other}"] if same else []),
            *([f"{counted(len(groups), 'group')} of it are in {other}, too"] if len(groups) else []),
        ]
        if parts:
            said.append(f"The given {one} split leaks: {' and '.join(parts)}. Accuracies on it are too high.")
    return said


def group_sizes(groups: npt.NDArray[np.str_]) -> Integers:
    """Returns how many images each group has, the largest first; images of no group are left out."""
    return np.sort(np.unique(groups[groups != ""], return_counts=True)[1])[::-1].astype(np.int64)


def describe_equals(known: Known) -> list[str]:
    """Returns a sentence on equal images with two labels, and one on those with one; none where there are none."""
    disagreeing = conflicts(known)
    repeated = len(known) - len(np.unique(known.digests))
    said = [f"{counted(repeated, 'image')} repeat another one, pixel for pixel; equal images lie in one split."]
    if disagreeing:
        some = "; ".join(disagreeing[:NAMED]) + ("; ..." if len(disagreeing) > NAMED else "")
        said.append(f"{counted(len(disagreeing), 'image')} have more than one label: {some}.")
    return said if repeated else []


def _hashed(known: Known, units: Integers, free: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Returns which of the free images are test, (N,).

    Each class keeps a unit to train on and, where none is given, one for valid. Where units lie across classes, what
    one class takes or gives back may be another's: the order of the classes then decides whether that can be, and
    others are tried, which begin with no test image. What has a low hash is test again then, as far as each class
    keeps what it needs.
    """
    places, leave = _places(known, units), 1 if (known.given == "valid").any() else 2
    of_label = [free & (known.labels == label) for label in range(len(known.class_names))]
    _refuse(known, [label for label, mine in enumerate(of_label) if _n_units(units[mine]) <= leave], units, free)
    rng, begun = np.random.default_rng(0), free & (places < TEST_SHARE)
    first = test = _hashed_in_order(of_label, units, places, begun.copy(), free, leave)
    for _ in range(ORDERS):
        if all((mine & test).any() and _n_units(units[mine & ~test]) >= leave for mine in of_label):
            rows = np.flatnonzero(free)
            test[rows] = _filled_up(test[rows], begun[rows], known.labels[rows], units[rows], leave, places[rows])
            return test
        shuffled = [of_label[i] for i in rng.permutation(len(of_label))]
        test = _hashed_in_order(shuffled, units, places, np.zeros_like(free), free, leave)
    return first


def _hashed_in_order(
    of_label: Sequence[Flags], units: Integers, places: npt.NDArray[np.float64], test: Flags, free: Flags, leave: int
) -> Flags:
    """Returns which images are test where each class in turn takes a unit and leaves so many, as far as it can."""
    for mine in of_label:
        if not (mine & test).any():
            test[free & (places == places[mine].min())] = True
        while _n_units(units[mine & ~test]) < leave and _n_units(units[mine & test]) > 1:
            test[places == places[mine & test].max()] = False
    return test


def _filled_up(
    chosen: Flags,
    wanted: Flags,
    labels: Integers,
    units: Integers,
    leave: int,
    places: npt.NDArray[np.float64] | None = None,
) -> Flags:
    """Returns the chosen images, and the wanted units that leave so many units of each class; the lowest place first.

    Args:
        chosen: (N,), whole units.
        wanted: (N,), whole units.
        labels: (N,).
        units: (N,).
        leave: Units of each class that are to stay outside.
        places: (N,), the same for all of a unit; None: the units in their order.
    """
    pairs = np.unique(np.column_stack([units, labels]), axis=0)
    outside = np.bincount(pairs[~np.isin(pairs[:, 0], units[chosen]), 1], minlength=int(labels.max(initial=-1)) + 1)
    some = np.flatnonzero(wanted & ~chosen)
    some = some if places is None else some[np.argsort(places[some], kind="stable")]
    added = []
    for unit in dict.fromkeys(units[some].tolist()):
        classes = pairs[slice(*np.searchsorted(pairs[:, 0], [unit, unit + 1])), 1]
        if (outside[classes] > leave).all():
            outside[classes] -= 1
            added.append(unit)
    return chosen | np.isin(units, added)


def _places(known: Known, units: Integers) -> npt.NDArray[np.float64]:
    """Returns a number in [0, 1) for each image, the same for all of a unit: the least of its members' hashes."""
    keys = np.where(known.groups == "", known.digests.astype(str), np.char.add("group ", known.groups))
    distinct, number = np.unique(keys, return_inverse=True)
    hashes = [hashlib.blake2b(str(key).encode(), digest_size=8, person=b"test split").digest() for key in distinct]
    of_image = np.array([int.from_bytes(each, "big") / 2**64 for each in hashes])[number]
    least = np.full(int(units.max(initial=-1)) + 1, np.inf)
    np.minimum.at(least, units, of_image)
    return least[units]


def _filled(room: npt.NDArray[np.float64], n: int, full: npt.NDArray[np.float64]) -> Integers:
    """Returns the parts of `n` images that fill the room which is left in each part, in proportion.

    Of equal claims to an odd image, that of the part which is least `full` wins: else the first parts would have those
    of all classes.
    """
    if n == 0:
        return np.empty(0, np.int64)
    exact = room * (n / room.sum()) if room.sum() else np.full(len(room), n / len(room))
    take = np.floor(exact).astype(np.int64)
    take[np.lexsort((full, (take - exact).round(9)))[: n - take.sum()]] += 1
    return np.repeat(np.arange(len(room)), take)


def _completed(labels: Integers, units: Integers, valid: Flags, order: Integers) -> tuple[Flags | None, int]:
    """Returns which are valid, changed as `on_both_sides` says, classes in this order; or None and who cannot be."""
    n_classes = int(labels.max(initial=-1)) + 1
    total = np.bincount(labels, minlength=n_classes)
    for label in order[~np.isin(order, labels[~valid])]:
        if not (labels[~valid] == label).any():  # What another class got back may have it.
            valid[units == _by_size(units, labels == label)[0]] = False
    for label in order[~np.isin(order, labels[valid])]:
        if (labels[valid] == label).any():
            continue
        in_train = np.bincount(labels[~valid], minlength=n_classes)
        for unit in _by_size(units, ~valid & (labels == label)):
            rows = units == unit
            if ((in_train > np.bincount(labels[rows], minlength=n_classes)) | (total == 0)).all():
                valid[rows] = True
                break
        else:
            return None, int(label)
    return valid, -1


def _by_size(units: Integers, some: Flags) -> Integers:
    """Returns the units of some images, the smallest first."""
    mine = np.unique(units[some])
    found: Integers = mine[np.argsort(np.bincount(units)[mine], kind="stable")]
    return found


def _in_one_fold(have: Integers) -> Integers:
    """Returns the classes of which all images lie in one fold; `have` are the counts, (folds, classes)."""
    return np.flatnonzero((have.sum(axis=0) > 0) & (have.max(axis=0) == have.sum(axis=0)))


def _check_classes(known: Known, splits: dict[str, Integers]) -> None:
    """Raises UserError where a class has no image in one of the splits."""
    for name, rows in splits.items():
        counts = np.bincount(known.labels[rows], minlength=len(known.class_names))
        if lacking := [known.class_names[label] for label in np.flatnonzero(counts == 0)]:
            have = "has" if len(lacking) == 1 else "have"
            raise UserError(f"Each class must have an image in {name}, but {named(lacking)} {have} none. {WAY_OUT}")


def _refuse(known: Known, labels: Sequence[int], units: Integers, free: Flags | None = None) -> None:
    """Raises UserError for classes that are too small, if there are any; of some images, only the `free` ones count."""
    if not labels:
        return
    grouped = bool((known.groups != "").any())
    groups = np.unique(known.groups)
    if grouped and len(groups) < 3 and "" not in groups:
        raise UserError(
            "The images must be of 3 groups at least, one for each split, but are of "
            f"{len(groups)}: {named(groups.tolist())}. Choose another --group-column or --group-pattern, or leave that "
            "out."
        )
    if (known.given == "valid").all():
        raise UserError("Every image is valid, so that none is left to train on or to test. Check the split column.")
    words = []
    for label in labels:
        mine = (known.labels == label) & (True if free is None else free)
        n, n_units = int(mine.sum()), _n_units(units[mine])
        copies = f", {n_units} different" if n_units < n else ""
        words.append(
            f"{known.class_names[label]} ({counted(n, 'image')}"
            + (f" of {counted(n_units, 'group')})" if grouped else f"{copies})")
        )
    raise UserError(f"Some classes have too few images to be in all splits: {named(words)}. {WAY_OUT}")


def named(words: Sequence[str]) -> str:
    """Returns the first words, and how many more there are."""
    return ", ".join(words[:NAMED]) + (f" and {len(words) - NAMED} more" if len(words) > NAMED else "")


def _n_units(units: Integers) -> int:
    return len(np.unique(units))

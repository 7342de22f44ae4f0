"""What is said of scores beside each other."""

import pytest

from tuning.runs import verdicts


@pytest.mark.parametrize(
    ("lengthening", "said"),
    [
        (
            3.0,
            "trained 3 times as long as in the search, so this is the luck that its best values had less what",
        ),
        (
            0.5,
            "trained 0.5 times as long as in the search, so this is the luck that its best values had and what",
        ),
        (1.0, "makes them too high"),
        (None, "makes them too high"),
    ],
)
def test_fresh_seeds_are_behind_by_luck_and_by_the_length_of_their_training(
    lengthening: float | None, said: str
) -> None:
    assert said in verdicts.luck(lengthening)

"""What fresh seeds say of a search, in sentences: `final` prints them, the model card and the page of a run have them.

The facts are those of `metrics.json`.
"""

import math
from collections.abc import Mapping
from typing import Any

COMPARED = {"random": "the best of the points drawn at random", "default": "the default configuration"}


def verdicts(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns a word and a sentence for each thing that the winner was compared with: was the search worth it?"""
    found = []
    for name, other in COMPARED.items():
        value = metrics.get(f"{name}_difference")
        if value is None:
            continue
        low, high = metrics.get(f"{name}_difference_interval") or (math.nan, math.nan)
        if value == low == high == 0:  # No two configurations are as equal as that.
            found.append(("No", f"The winner is {other} itself."))
            continue
        side = "better" if value >= 0 else "worse"
        interval = "" if math.isnan(low) else f" (95% interval {100 * low:+.2f} to {100 * high:+.2f})"
        chance = "" if low > 0 or high < 0 else ", which may be chance"
        word = "Yes" if low > 0 else "No" if high < 0 else "Not shown"
        points = f"{abs(100 * value):.2f} points {side} than {other}"
        found.append((word, f"On the valid split, the winner is {points}{interval}{chance}."))
    return found


def luck(lengthening: float | None) -> str:
    """Returns why the search's values are above those of fresh seeds.

    Args:
        lengthening: How many times as long as in the search the models were trained; None without a search.
    """
    if lengthening is None or math.isclose(lengthening, 1):
        return "Choosing the best of noisy values makes them too high: this is the luck that they had."
    return (
        f"The models were trained {lengthening:.3g} times as long as in the search, so this is the luck that its best "
        "values had less what the longer training gained; --epochs with the search's length shows the luck alone."
    )

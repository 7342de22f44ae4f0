"""How a number is written for the eye: rounded, and never as another kind of number than it is."""

import math
from collections.abc import Iterable

_MOST_DIGITS = 12  # What sums of floats are exact to; two numbers that agree so far are one to a reader.
_FAITHFUL = 0.05  # The share by which a distance to 1 may change.


def rounded(value: float, digits: int = 3) -> str:
    """Returns a number as text, to three digits or to more where these would say something else.

    A whole number stays whole. One below 100 that is not whole does not become whole, and one just below 1 keeps its
    distance to 1: an EMA of 0.9999 is not one of 1.

    Args:
        value: Any number.
        digits: The fewest, at least 1; zeros at the end are left out.
    """
    if not math.isfinite(value) or abs(value) >= 1e15:
        return f"{value:.{digits}g}"
    if abs(value - round(value)) <= 10**-_MOST_DIGITS * abs(value):
        return _whole(round(value))
    for enough in range(digits, _MOST_DIGITS + 1):
        text = _to(value, enough)
        if _honest(value, float(text)):
            break
    return _whole(int(text)) if abs(value) >= 100 and text.lstrip("-").isdigit() else text


def apart(values: Iterable[float]) -> list[str]:
    """Returns numbers as texts that differ where the numbers do, as the ticks of an axis must."""
    known = list(values)
    n_differ = len({rounded(value, _MOST_DIGITS) for value in known})
    for digits in range(3, _MOST_DIGITS):
        texts = [rounded(value, digits) for value in known]
        if len(set(texts)) == n_differ:
            return texts
    return [rounded(value, _MOST_DIGITS) for value in known]


def _to(value: float, digits: int) -> str:
    """Returns a number to so many digits, all of its whole part included; without an exponent from 1 on."""
    if abs(value) < 1:
        return f"{value:.{digits}g}"
    decimals = max(0, digits - len(str(int(abs(value)))))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text


def _honest(value: float, shown: float) -> bool:
    """Returns whether a number that is not whole is still itself as it is shown."""
    if abs(value) >= 100:
        return True
    if 0.5 < abs(value) < 1:
        return abs(shown - value) <= _FAITHFUL * (1 - abs(value))
    return not shown.is_integer()


def _whole(value: int) -> str:
    return f"{value:,}" if abs(value) >= 10_000 else str(value)

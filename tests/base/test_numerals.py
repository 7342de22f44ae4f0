"""Numbers rounded for the eye: whole ones stay whole, and none becomes another kind of number."""

import math

import pytest

from tuning.base.numerals import apart, rounded


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (512.0, "512"),
        (1004.0, "1004"),
        (4096.0, "4096"),
        (25_000.0, "25,000"),
        (3 * 0.1 * 10, "3"),  # 3.0000000000000004
        (0.12345, "0.123"),
        (1.69e-6, "1.69e-06"),
        (1e-13, "1e-13"),
        (0.9999, "0.9999"),  # An EMA of 1 would never move.
        (0.9995, "0.9995"),
        (0.9994, "0.9994"),  # Of 0.999 the distance to 1 is nearly twice as large.
        (-0.9999, "-0.9999"),
        (0.98951, "0.99"),
        (1.0001, "1.0001"),
        (20.04, "20.04"),
        (12.345, "12.3"),
        (99.96, "99.96"),
        (123.4, "123"),
        (1234.5, "1234"),
        (99_999.7, "100,000"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (1.5e300, "1.5e+300"),
    ],
)
def test_a_number_is_rounded_to_three_digits_and_stays_what_it_is(value: float, expected: str) -> None:
    assert rounded(value) == expected


def test_numbers_that_differ_have_texts_that_do() -> None:
    assert apart([2.1e-5, 2.2e-5, 2.6e-5]) == ["2.1e-05", "2.2e-05", "2.6e-05"]
    assert apart([2.101e-5, 2.102e-5]) == ["2.101e-05", "2.102e-05"]
    assert apart([100.2, 100.4, 512.0]) == ["100.2", "100.4", "512"]
    assert apart([1000.0, 1004.0]) == ["1000", "1004"]
    assert apart([0.3, 0.1 + 0.2]) == ["0.3", "0.3"]  # No reader can tell them apart, however many digits there are.
    assert apart([]) == []

"""What frames mean, as they are read from files."""

from pathlib import Path

import pandas as pd

from tuning.runs import schema


def test_a_class_may_be_called_like_no_value(tmp_path: Path) -> None:
    names = ["None", "NA", "nan", "null", "ok"]
    frame = pd.DataFrame({"class": names, "recall": [0.5, None, 0.25, 1.0, 0.0], "trial": [1, None, 2, 3, 4]})
    frame.to_csv(tmp_path / "named.csv", index=False)
    found = schema.read_named(tmp_path / "named.csv")
    assert found["class"].tolist() == names and found["recall"].isna().tolist() == [False, True, False, False, False]
    assert found["trial"].isna().sum() == 1 and found["trial"].dropna().tolist() == [1, 2, 3, 4]

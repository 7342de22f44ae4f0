"""What frames mean, as they are read from files."""

from pathlib import Path

import pandas as pd
import pytest

from tuning.base.errors import UserError
from tuning.runs import schema


def test_a_class_may_be_called_like_no_value(tmp_path: Path) -> None:
    names = ["None", "NA", "nan", "null", "ok"]
    frame = pd.DataFrame({"class": names, "recall": [0.5, None, 0.25, 1.0, 0.0], "trial": [1, None, 2, 3, 4]})
    frame.to_csv(tmp_path / "named.csv", index=False)
    found = schema.read_named(tmp_path / "named.csv")
    assert found["class"].tolist() == names and found["recall"].isna().tolist() == [False, True, False, False, False]
    assert found["trial"].isna().sum() == 1 and found["trial"].dropna().tolist() == [1, 2, 3, 4]


def test_true_and_false_are_read_as_a_spreadsheet_writes_them(tmp_path: Path) -> None:
    path, dtypes = tmp_path / "trials.csv", {"trial": "int64", "flip": "boolean"}
    path.write_text("trial,flip\n0,TRUE\n1,False\n2,\n3,false\n")
    assert schema.read_frame(path, dtypes)["flip"].tolist() == [True, False, pd.NA, False]
    path.write_text("trial,flip\n0,TRUE\n1,WAHR\n")
    with pytest.raises(UserError, match=r"trials\.csv is damaged: flip must be True or False, but got 'WAHR'\. "):
        schema.read_frame(path, dtypes)

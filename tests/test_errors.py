"""Errors that a user can cause."""

import errno
import subprocess
import sys

import pytest

from tuning.errors import UserError, disk_full, unknown_name


def test_unknown_name_lists_what_is_known_and_names_the_closest() -> None:
    error = unknown_name("Fruit", "aple", ["pear", "apple"])
    assert str(error) == "Fruit must be one of apple, pear, but got 'aple'. Did you mean 'apple'?"


def test_unknown_name_guesses_nothing_where_nothing_is_close() -> None:
    assert "Did you mean" not in str(unknown_name("Fruit", "zzz", ["pear", "apple"]))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_disk_full_says_what_was_being_written(number: int) -> None:
    error = disk_full("results/x/epochs.csv", OSError(number, "full"))
    assert str(error).startswith("No space left on the disk while writing results/x/epochs.csv.")


def test_disk_full_leaves_other_errors_alone() -> None:
    assert disk_full("x", OSError(errno.EACCES, "denied")) is None


@pytest.mark.parametrize(
    ("raised", "code", "message", "traceback"),
    [
        ("UserError('Mend it.')", 2, "error: Mend it.", False),
        ("OSError(28, 'No space', 'model.pth')", 2, "error: No space left on the disk while writing model.pth", False),
        ("KeyError('a bug')", 1, "KeyError: 'a bug'", True),
    ],
)
def test_commands_exit_with_2_for_users_and_keep_the_traceback_of_bugs(
    raised: str, code: int, message: str, traceback: bool
) -> None:
    program = f"from tuning.errors import *\ndef main() -> None:\n    'Fail.'\n    raise {raised}\nrun_command(main)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert message in done.stderr
    assert ("Traceback" in done.stderr) == traceback


def test_a_user_error_is_an_exception() -> None:
    with pytest.raises(UserError, match="Mend it"):
        raise UserError("Mend it.")


def test_what_a_command_writes_is_not_everybodys_to_change() -> None:
    program = (
        "import os; os.umask(0)\nfrom tuning.errors import *\n"
        "def main() -> None:\n    'Print the umask.'\n    print(os.umask(0))\nrun_command(main)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "2\n"

"""Errors that a user can cause."""

import errno
import os
import subprocess
import sys

import pytest

from tuning.base.errors import UserError, disk_full, each_alone, unknown_name


def test_unknown_name_lists_what_is_known_and_names_the_closest() -> None:
    error = unknown_name("Fruit", "aple", ["pear", "apple"])
    assert str(error) == "Fruit must be one of apple, pear, but got 'aple'. Did you mean 'apple'?"


def test_unknown_name_guesses_nothing_where_nothing_is_close() -> None:
    assert "Did you mean" not in str(unknown_name("Fruit", "zzz", ["pear", "apple"]))


def test_unknown_name_says_where_nothing_is_known() -> None:
    assert (
        str(unknown_name("Fruit", "apple", []))
        == "Fruit must be one that there is, but got 'apple', and there is none."
    )


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
    program = (
        f"from tuning.base.errors import *\ndef main() -> None:\n    'Fail.'\n    raise {raised}\nrun_command(main)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert message in done.stderr
    assert ("Traceback" in done.stderr) == traceback


def test_a_signal_while_the_command_is_still_built_says_how_to_go_on() -> None:
    program = (
        "import typer\nfrom tuning.base.errors import *\n"
        "def get_command(app: object) -> None:\n    raise KeyboardInterrupt\n"
        "typer.main.get_command = get_command\ndef main() -> None:\n    'Fail.'\nrun_command(main)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "Interrupted. Run the same command again to go on.\n")


def test_an_interrupt_that_passed_through_an_extension_ends_a_command_as_any_other() -> None:
    program = (
        "import ctypes\nfrom tuning.base.errors import *\n"
        "def main() -> None:\n    'Fail.'\n"
        "    ctypes.pythonapi.PyRun_SimpleString(b'raise KeyboardInterrupt')\n    raise KeyboardInterrupt\n"
        "run_command(main)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 130 and done.stderr.endswith("Interrupted. Run the same command again to go on.\n")


def test_a_user_error_is_an_exception() -> None:
    with pytest.raises(UserError, match="Mend it"):
        raise UserError("Mend it.")


def test_what_a_command_writes_is_not_everybodys_to_change() -> None:
    program = (
        "import os; os.umask(0)\nfrom tuning.base.errors import *\n"
        "def main() -> None:\n    'Print the umask.'\n    print(os.umask(0))\nrun_command(main)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "2\n"


@pytest.mark.parametrize(
    ("encoding", "written"),
    [("utf-8", "93 ± 1 → Grün"), ("ascii", "93 +- 1 -> Gr?n"), ("latin-1", "93 ± 1 -> Grün")],
)
def test_what_an_encoding_lacks_is_written_in_plain_letters(encoding: str, written: str) -> None:
    program = (
        "import sys\nfrom tuning.base.errors import *\ndef main() -> None:\n    'Print.'\n    text = '93 ± 1 → Grün'\n"
        "    print(text)\n    raise UserError(text)\nrun_command(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
    )
    assert done.returncode == 2
    assert done.stdout.decode(encoding) == f"{written}\n"
    assert done.stderr.decode(encoding) == f"error: {written}\n"


def test_one_that_fails_is_told_and_costs_no_other() -> None:
    told: list[str] = []

    def fail() -> int:
        raise ValueError("no")

    def refuse() -> int:
        raise UserError("Mend it.")

    assert each_alone({"A": lambda: 1, "B": fail, "C": refuse, "D": lambda: 4}, told.append) == {"A": 1, "D": 4}
    assert told == ["B cannot be made: ValueError: no", "C cannot be made: Mend it."]


def test_a_full_disk_ends_all() -> None:
    def fail() -> int:
        raise UserError("No space left on the disk while writing x.")

    with pytest.raises(UserError, match="No space left"):
        each_alone({"A": fail}, print)


def test_a_files_name_that_is_no_utf_8_can_be_printed() -> None:
    program = (
        "from tuning.base.errors import *\n"
        "def main() -> None:\n    'Print.'\n    print('caf\\udce9')\nrun_command(main)"
    )
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (0, "caf?\n")

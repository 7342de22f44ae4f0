"""Passwords and keys are masked wherever a text, a list of arguments or a dict has them, and nothing else is."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tuning.base.masking import MaskedFormatter, masked, masked_all

ROOT = Path(__file__).parents[2]
LONG = 1_000_000  # Characters: what takes quadratic time for them takes hours.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("got 401 for Bearer hunter2, try again", "got 401 for Bearer ***, try again"),
        ("Authorization: Bearer hunter2", "Authorization: ***"),
        ("Authorization: Basic aHVudGVyMg== was refused", "Authorization: *** was refused"),
        ("run --api-key hunter2 --seed 3", "run --api-key *** --seed 3"),
        ("run --token hunter2", "run --token ***"),
        ("run --password=hunter2 --seed 3", "run --password=*** --seed 3"),
        ("run --password 'hunter2 hunter2' --seed 3", "run --password '***' --seed 3"),
        ("run --db-password='hunter2 hunter2' --seed 3", "run --db-password='***' --seed 3"),
        ("run --api_key hunter2", "run --api_key ***"),
        ('{"user": "bob", "password": "hunter2", "seed": 3}', '{"user": "bob", "password": "***", "seed": 3}'),
        ('{"password":"hunter2"}', '{"password":"***"}'),
        (r'{"password": "hunt\"hunt", "seed": 3}', '{"password": "***", "seed": 3}'),
        (r"said {\"password\": \"hunter2\"} to it", r"said {\"password\": \"***\"} to it"),
        ("{'api_key': 'hunter2', 'seed': 3}", "{'api_key': '***', 'seed': 3}"),
        ("{'token': b'hunter2'}", "{'token': b'***'}"),
        ("{'accessToken': 'hunter2'}", "{'accessToken': '***'}"),
        ("user: bob\ntoken: hunter2\nseed: 3", "user: bob\ntoken: ***\nseed: 3"),
        ("  client_secret: hunter2  # mine", "  client_secret: ***  # mine"),
        ("- secret: hunter2", "- secret: ***"),
        ("{user: bob, token: hunter2}", "{user: bob, token: ***}"),
        ("login failed, password: hunter2", "login failed, password: ***"),
        ("password:hunter2", "password:***"),
        ("connect(password='hunter2', port=3)", "connect(password='***', port=3)"),
        ("password: 'hunter2", "password: '***"),
        ("{password: {a: b}, x: [api_key: hunter2]}", "{password: {a: b}, x: [api_key: ***]}"),
        ("say `--password x`, `password=x` or `token=x`.", "say `--password ***`, `password=***` or `token=***`."),
        ("PASSWORD: 123456", "PASSWORD: ***"),
    ],
)
def test_a_secret_is_masked_and_what_is_around_it_stays(text: str, expected: str) -> None:
    assert masked(text) == expected
    assert masked(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "tokens: 5 were drawn",
        "token: 5 were drawn",
        "n_tokens=512, token_count=3",
        "token_count: 3",
        "{'max_token': 3, 'token': None}",
        "keys: a, b",
        "key: value",
        "monkey: banana",
        "tokenizer: bert",
        "Unexpected token: '}' in line 3",
        "the secret: train longer",
        "the bearer of good news",
        "/run/secrets/token: no such file",
        "/home/me/.password: no such file",
        "/home/me/password.txt",
        "PWD=/home/me",
        "--password must be given, but got none.",
        "Use --token to log in, or --api-key.",
        "--tokens 5 --token-file /home/me/token",
        "--token --seed 3",
        "def log_in(user: str, token: str) -> None:",
        "password: null",
        "repository/token:latest",
        "epoch 3: valid_accuracy 0.91, valid_loss 0.3",
    ],
)
def test_ordinary_words_numbers_and_paths_stay(text: str) -> None:
    assert masked(text) == text


def test_a_word_of_the_projects_own_in_the_environment_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET_NAME", "results")
    monkeypatch.setenv("MY_SECRET", "hunter22")
    assert masked("Run folder: results/first, hunter22") == "Run folder: results/first, ***"


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "piece",
    [
        "?",
        "&key",
        "?token",
        "://:",
        "://a",
        "a:",
        "password",
        "password=",
        "password='",
        "password: \\",
        'password: "',
        "token_",
        "--token ",
        "--token",
        "--token '",
        "-",
        ", token: ",
        "{",
        ".",
        ",",
        "password:,",
        "'token'",
        "'token': '",
        "bearer ",
        "authorization: ",
        "authorization:",
        " ",
        "\n",
        "\\",
        "a",
        "1",
        "a.",
    ],
)
def test_no_text_takes_more_than_linear_time(piece: str) -> None:
    assert masked(piece * (LONG // len(piece))) is not None


def test_an_argument_after_an_option_that_names_a_secret_is_masked_in_a_list() -> None:
    arguments = ["search", "--api-key", "hunter2", "--token", "hunter2", "--password=hunter2", "--seed", "3"]
    expected = ["search", "--api-key", "***", "--token", "***", "--password=***", "--seed", "3"]
    assert masked_all(arguments) == expected
    assert masked_all(["--token", "--seed", "--token"]) == ["--token", "--seed", "--token"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"password": "hunter2"}, {"password": "***"}),
        ({"a": [{"db_password": "hunter2", "seed": 3}]}, {"a": [{"db_password": "***", "seed": 3}]}),
        ({"Authorization": "Basic hunter2"}, {"Authorization": "***"}),
        ({"api_key": ["hunter2", {"id": "hunter2"}]}, {"api_key": ["***", {"id": "***"}]}),
        ({"secretAccessKey": "hunter2"}, {"secretAccessKey": "***"}),
        ({"password": None, "token": 3, "secret": True}, {"password": None, "token": 3, "secret": True}),
        ({"token_count": "3", "keys": "a", "password": ""}, {"token_count": "3", "keys": "a", "password": ""}),
        ({3: "x"}, {3: "x"}),
    ],
)
def test_a_value_whose_key_names_a_secret_is_masked_whole(value: Any, expected: Any) -> None:
    assert masked_all(value) == expected


def test_json_that_is_masked_as_a_text_is_still_json() -> None:
    value = {"password": 'a"b\\c', "seed": 3, "nested": {"token": "x y", "api_key": None}}
    found = json.loads(masked(json.dumps(value)))
    assert found == {"password": "***", "seed": 3, "nested": {"token": "***", "api_key": None}}


def run(raised: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command whose `main` does this, with everything imported that a command needs for it."""
    program = (
        "import threading\nfrom tuning.base.errors import *\n"
        "def fail() -> None:\n    raise ValueError('no answer from http://bob:hunter2@host')\n"
        f"def main() -> None:\n    'Fail.'\n    {raised}\nrun_command(main)"
    )
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_an_exception_that_no_command_catches_is_printed_without_the_password() -> None:
    done = run("fail()")
    assert done.returncode == 1 and "hunter2" not in done.stdout + done.stderr
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert done.stderr.endswith("ValueError: no answer from http://***@host\n")


def test_an_exception_of_another_thread_is_printed_without_the_password() -> None:
    done = run("thread = threading.Thread(target=fail, name='sender'); thread.start(); thread.join()")
    assert done.returncode == 0 and "hunter2" not in done.stdout + done.stderr
    assert done.stderr.startswith("Exception in thread sender:\nTraceback (most recent call last):")
    assert done.stderr.endswith("ValueError: no answer from http://***@host\n")


def test_a_log_is_written_without_passwords_those_of_tracebacks_included(tmp_path: Path) -> None:
    handler = logging.FileHandler(tmp_path / "driver.log", encoding="utf-8")
    handler.setFormatter(MaskedFormatter())
    logger = logging.Logger("masking")
    logger.addHandler(handler)
    try:
        raise ValueError("no answer from http://bob:hunter2@host")
    except ValueError:
        logger.exception("Failed with %s", "password=hunter2")
    handler.close()
    written = (tmp_path / "driver.log").read_text(encoding="utf-8")
    assert written.startswith("Failed with password=***\nTraceback (most recent call last):")
    assert written.endswith("ValueError: no answer from http://***@host\n")

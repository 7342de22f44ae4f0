"""Passwords and keys in a text: masked before it is written down or shown, wherever they came in.

No pattern here takes more than linear time: each quantifier that another start could repeat has an upper bound.
"""

import logging
import os
import re
import sys
import threading
import traceback
from types import TracebackType
from typing import Any

MASK = "***"
_LEAST = 6  # Characters: a shorter secret may be a part of any word.
# What follows a URI's "://", where a name and a password come before the host; no number is taken for a port.
_USER = re.compile(r"(?<=://)(?:[^/?#\s@:]*:(?!\d+(?:[/?#]|$))(?P<rest>[^\s'\"]*)|[^/?#\s]*(?=@))")
# A parameter of a URI that holds a key, such as sig=, X-Amz-Signature= and AccessKeyId=.
_PARAMETER = re.compile(
    r"(?<=[?&;#])(?:[^=&;?#\s]{0,60}?(?:key|secret|token|passw|pwd|credential|signature)[^=&;?#\s]{0,60}"
    r"|sig|auth|apikey)=[^&\s]*",
    re.I,
)
_HEADER = re.compile(r"(authorization['\"]?\s{0,9}[:=]\s{0,9}['\"]?)(?:\w{1,40} {1,9})?[^\s'\",}]+", re.I)
# A bearer's token has a digit or is long: "the bearer of good news" has none.
_BEARER = re.compile(r"(?<!\w)(bearer {1,9})(?=[\w.~+/=-]{0,99}\d|[\w.~+/=-]{20})[\w.~+/=-]+", re.I)
# What may be a secret after a name: quoted, or up to the next space or quote; a quote that nothing closes counts, too.
_QUOTED = r"[bru]{0,2}(?:\"(?:\\.|[^\"\\\n]){0,4000}\"|'(?:\\.|[^'\\\n]){0,4000}'|\\[\"'][^\"'\\\n]{0,4000}\\[\"'])"
_BARE = r"(?:\\?['\"])?"
# As a shell or a library names one outside of a URI: AWS_SECRET_ACCESS_KEY=..., token=..., password='...'
_NAMED = re.compile(
    r"(?<![\w?&;#-])(?P<name>[\w-]{0,60}?(?:secret|token|passw|pwd|api[_-]?key|access[_-]?key)[\w-]{0,60}=)"
    rf"(?P<value>{_QUOTED}|{_BARE}[^\s'\",;&]+)",
    re.I,
)
_WORDS = r"passw(?:or)?d|passphrase|pwd|api[_-]?key|access[_-]?key(?:[_-]?id)?|(?:secret|private)[_-]?key"
_SECRET = rf"[\w.-]{{0,60}}?(?:{_WORDS}|token|secret)"
# An option with its value as the next argument; a sentence about the option continues with one of these words.
_PROSE = r"(?:must|is|was|to|or|and|needs|has|for|with|may|can|cannot|which|in|of|as|option)(?!\S)"
_OPTION = re.compile(
    rf"(?<![\w-])(?P<name>--?{_SECRET}[ \t]{{1,9}})(?!-|{_PROSE})(?P<value>{_QUOTED}|{_BARE}[^\s'\"]+)", re.I
)
# An entry of a dict, of JSON or of YAML. "token" and "secret" are words of other sentences, too, so they are a key only
# in quotes or where a key begins; a path that ends with one of these names is none.
_ENTRY = re.compile(
    rf"(?P<name>(?P<quote>\\?['\"]){_SECRET}(?P=quote)\s{{0,9}}:\s{{0,9}}"
    rf"|(?<![\w/\\.'\"-])[\w.-]{{0,60}}?(?:{_WORDS}|[_-](?:token|secret))[ \t]{{0,9}}:[ \t]{{0,9}}(?!//)"
    r"|(?:^[ \t]{0,99}(?:- )?|[{,][ \t]{0,9})(?:token|secret)[ \t]{0,9}:[ \t]{1,9})"
    rf"(?P<value>{_QUOTED}|(?![{{\[]){_BARE}[^\s'\"]+)",
    re.I | re.M,
)
_NO_SECRET = re.compile(r"(?:none|null|true|false|~|str|bytes|any|\*\*\*)[,;}\])]*", re.I)
_NUMBER = re.compile(rf"\d{{1,{_LEAST - 1}}}")
# What stays of a value: its quotes, or the brackets and stops behind it.
_EDGES = re.compile(r"(?P<opening>[bru]{0,2}\\?['\"])?.*?(?P<closing>\\?['\"]|[,;}\])`.]{0,5})", re.I | re.S)
_KEY = re.compile(rf"(?:{_SECRET}|authorization)", re.I)
_SWITCH = re.compile(rf"--?{_SECRET}", re.I)
# Where a secret that came in by the environment is; what a library repeats of it is masked, too.
_VARIABLES = re.compile(r"SECRET|TOKEN|PASSW|_PWD|API_?KEY|ACCESS_KEY", re.I)
# Values that are no secrets, and that nearly every message has in it.
_OWN_WORDS = (
    "best_model",
    "epochs",
    "explore",
    "predict",
    "report",
    "results",
    "search",
    "search_spaces",
    "trials",
    "tuning",
)


def masked(text: str) -> str:
    """Returns a text without passwords and keys: those of the URIs in it, and those of this process's environment.

    Those that a name stands before are masked, too, as in `password=x`, `--api-key x`, `"token": "x"` and `Bearer x1`.
    """
    for name, secret in os.environ.items():
        is_word = len(secret) < _LEAST or secret in _OWN_WORDS or secret.startswith(("/", "~", "."))
        if _VARIABLES.search(name) and not is_word:
            text = text.replace(secret, MASK)
    text = _PARAMETER.sub(MASK, _USER.sub(_without_user, text))
    text = _BEARER.sub(rf"\1{MASK}", _HEADER.sub(rf"\1{MASK}", text))
    for pattern in (_NAMED, _OPTION, _ENTRY):
        text = pattern.sub(_without_value, text)
    return text


def masked_all(value: Any) -> Any:
    """Returns a value as JSON has it, without passwords and keys in its texts; version 0.2.0 wrote some down.

    A text whose key names a secret is masked whole, and so is an argument after an option such as `--password`. Numbers
    and None stay.
    """
    if isinstance(value, dict):
        return {name: _hidden(one) if _KEY.fullmatch(str(name)) else masked_all(one) for name, one in value.items()}
    if isinstance(value, list):
        return [
            MASK if _is_argument_of(before, one) else masked_all(one)
            for before, one in zip([None, *value], value, strict=False)
        ]
    return masked(value) if isinstance(value, str) else value


def mask_tracebacks() -> None:
    """Has Python mask the tracebacks of exceptions that nothing catches, in this and in every other thread."""
    sys.excepthook = _print_masked
    threading.excepthook = _print_of_thread


class MaskedFormatter(logging.Formatter):
    """Formats a record of a log as `logging` does, without passwords and keys, its traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


def _print_masked(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(masked("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr, flush=True)


def _print_of_thread(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_value is not None and not isinstance(failed.exc_value, SystemExit):
        print(f"Exception in thread {failed.thread.name if failed.thread else 'unknown'}:", file=sys.stderr)
        _print_masked(failed.exc_type, failed.exc_value, failed.exc_traceback)


def _without_user(found: re.Match[str]) -> str:
    """Returns what stands for a match of `_USER`, whose `rest` ends with the word, with or without an "@" in it."""
    rest = found["rest"]
    if rest is None:
        return MASK
    return f"{MASK}@{rest.rpartition('@')[2]}" if "@" in rest else found[0]


def _without_value(found: re.Match[str]) -> str:
    """Returns a name with the mask for its value, whose quotes stay; or both as they are where it is no secret."""
    name, value = found["name"], found["value"]
    if _NO_SECRET.fullmatch(value) or ("token" in name.lower() and _NUMBER.fullmatch(value.rstrip(",;.}])"))):
        return found[0]
    if re.search(r"pwd\W*$", name, re.I) and value.startswith("/"):  # A shell's PWD is the working directory.
        return found[0]
    edges = _EDGES.fullmatch(value)
    assert edges is not None
    return f"{name}{edges['opening'] or ''}{MASK}{edges['closing']}"


def _hidden(value: Any) -> Any:
    """Returns a value with each text in it masked whole; an empty one shows that there is none."""
    if isinstance(value, dict):
        return {name: _hidden(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_hidden(one) for one in value]
    return MASK if isinstance(value, str) and value else value


def _is_argument_of(option: Any, value: Any) -> bool:
    """Returns whether an argument is the secret that the option before it asks for."""
    both = isinstance(option, str) and isinstance(value, str)
    return both and not value.startswith("-") and _SWITCH.fullmatch(option) is not None

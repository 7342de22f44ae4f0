"""Passwords and keys in a text: masked before it is written down or shown, wherever they came in."""

import os
import re
from typing import Any

# The name and password before a host, or a token there; a password may hold a "/", but no number is taken for a port.
_USER = re.compile(r"(?<=://)(?:[^/?#\s@:]*:(?!\d+(?:[/?#]|$))[^\s'\"]*|[^/?#\s]*)(?=@)")
# A parameter of a URI that holds a key, such as sig=, X-Amz-Signature= and AccessKeyId=.
_PARAMETER = re.compile(
    r"(?<=[?&;#])(?:[^=&;\s]*(?:key|secret|token|passw|pwd|credential|signature)[^=&;\s]*|sig|auth|apikey)=[^&\s]*",
    re.I,
)
_HEADER = re.compile(r"(?<=authorization: )(\w+ +)?\S+", re.I)
# Where a secret that came in by the environment is; what a library repeats of it is masked, too.
_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)
_LEAST = 6  # Characters: a shorter secret may be a part of any word.


def masked(text: str) -> str:
    """Returns a text without passwords and keys: those of the URIs in it, and those of this process's environment."""
    for name in _VARIABLES:
        if len(secret := os.environ.get(name, "")) >= _LEAST:
            text = text.replace(secret, "***")
    return _HEADER.sub("***", _PARAMETER.sub("***", _USER.sub("***", text)))


def masked_all(value: Any) -> Any:
    """Returns a value as JSON has it, each text in it without passwords and keys; version 0.2.0 wrote some down."""
    if isinstance(value, dict):
        return {name: masked_all(one) for name, one in value.items()}
    if isinstance(value, list):
        return [masked_all(one) for one in value]
    return masked(value) if isinstance(value, str) else value

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
_HEADER = re.compile(r"(authorization['\"]?\s*[:=]\s*['\"]?)(?:\w+ +)?[^\s'\",}]+", re.I)
# As a shell or a library names one outside of a URI: AWS_SECRET_ACCESS_KEY=..., token=...
_NAMED = re.compile(r"(?<![\w?&;#-])([\w-]*(?:secret|token|passw|pwd|api_?key|access_?key)[\w-]*=)[^\s'\",;&]+", re.I)
# Where a secret that came in by the environment is; what a library repeats of it is masked, too.
_VARIABLES = re.compile(r"SECRET|TOKEN|PASSW|_PWD|API_?KEY|ACCESS_KEY", re.I)
_LEAST = 6  # Characters: a shorter secret may be a part of any word.


def masked(text: str) -> str:
    """Returns a text without passwords and keys: those of the URIs in it, and those of this process's environment."""
    for name, secret in os.environ.items():
        if _VARIABLES.search(name) and len(secret) >= _LEAST and not secret.startswith(("/", "~", ".")):
            text = text.replace(secret, "***")
    text = _PARAMETER.sub("***", _USER.sub("***", text))
    return _NAMED.sub(r"\1***", _HEADER.sub(r"\1***", text))


def masked_all(value: Any) -> Any:
    """Returns a value as JSON has it, each text in it without passwords and keys; version 0.2.0 wrote some down."""
    if isinstance(value, dict):
        return {name: masked_all(one) for name, one in value.items()}
    if isinstance(value, list):
        return [masked_all(one) for one in value]
    return masked(value) if isinstance(value, str) else value

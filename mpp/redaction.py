"""What may be shown and written: settings, URLs and texts without the secrets in them."""

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

HIDDEN = "***"
_SECRETS = {"token", "secret", "password", "passwd", "pwd", "key", "apikey", "authorization", "credential", "signature"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
# name=value, name: value, "name": "value", --name value of a header
_NAMED = re.compile(
    r"([\w.-]+)(['\"]?\s*[=:]\s*)((?:Bearer |Basic )?)(\"[^\"]*\"|'[^']*'|[^\s,;&'\"}\])]+)", re.IGNORECASE
)
_SHORTEST = 8  # characters: a shorter value of the environment is no secret and stands in other words


def names_secret(name: str) -> bool:
    """Return whether the words of a name (``api_key``, ``accessToken``; not ``keys``, ``log_every``) name a secret."""
    return any(word.lower() in _SECRETS for word in _WORD.findall(name))


def redact(value: Any) -> Any:
    """Return a text, or a tree of plain values, as it may be shown.

    Hidden are the values of settings that ``names_secret``, in URLs user, password and the values of the query, and
    whatever the environment holds under the name of a secret.
    """
    if isinstance(value, Mapping):
        return {name: _hidden(below) if names_secret(str(name)) else redact(below) for name, below in value.items()}
    if isinstance(value, list | tuple):
        return [redact(below) for below in value]
    return _text(value) if isinstance(value, str) else value


def redact_url(url: str) -> str:
    """Return a URL without user and password, and without the values in its query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{url.partition('://')[0].lower()}://..."
    pairs = [pair.partition("=") for pair in parts.query.split("&")] if parts.query else []
    query = "&".join(f"{name}=..." if equals else "..." for name, equals, _ in pairs)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def _hidden(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _hidden(below) for name, below in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(below) for below in value]
    return value if value is None or isinstance(value, bool) or value == "" else HIDDEN


def _text(text: str) -> str:
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and names_secret(name) and name != "PWD":
            text = text.replace(value, HIDDEN)
    text = _URL.sub(lambda found: redact_url(found[0]) if re.search("[@?]", found[0]) else found[0], text)
    return _NAMED.sub(_named, text)


def _named(found: re.Match[str]) -> str:
    last = found[1].rpartition(".")[2]
    # "key 0012: ..." and "the token: ..." are of samples and words, not of settings
    if not names_secret(last) or last.lower() in ("key", "token") or found[4].startswith(HIDDEN):
        return found[0]
    return f"{found[1]}{found[2]}{HIDDEN}"

"""Finds the secrets of a request, and strikes them out of the texts in which they come back, in whatever form.

Servers, proxies and client libraries quote what they were sent. A secret of three characters or more is struck out wherever
it stands. A shorter one is struck out only beside its name (``signature=1``): it is no secret that would be worth a text of
which nothing is left.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, quote_plus, unquote

from ratekeeper.rules.reading import digest

if TYPE_CHECKING:
    from ratekeeper.rules.call import Request

__all__ = ["concealed", "holds", "is_secret_name", "redact", "secrets_of", "struck"]

MARK: Final = "[...]"
_SHORTEST: Final = 3
"""Characters of a secret that is struck out wherever it stands."""
_LONGEST: Final = 200
"""Characters of a text that `redact` returns."""
_MOST_READ: Final = 4096
"""Characters of a text that are looked at; people are shown far fewer."""
_MOST_NODES: Final = 2000
"""Values of a JSON body that are looked at."""
_LARGE: Final = 16
"""From so many characters a path's segment of letters and digits is taken for a key."""

_NAME: Final = re.compile(
    r"key|secret|token(?!s)|sign|pass(?:phrase|word|wd)|pwd|auth|cookie|credential|session|jwt", re.I
)
_WEAK: Final = frozenset({"key", "token"})
"""Names that also mean a coin or an entry; of them only a value of eight characters or more is taken for a secret."""
_WORDS: Final = frozenset(
    ["true", "false", "none", "null", "undefined", "basic", "bearer", "digest", "token", "hmac", "sha256", "hmacsha256",
     "hmac-sha256", "ed25519", "rsa"]
)  # fmt: skip
"""Values of such names that are no secrets."""
_RUN: Final = re.compile(r"[A-Za-z0-9_\-+/=]{20,}")
_USER: Final = re.compile(r"(?<=://)[^/@\s]{1,500}(?=@)")
_VALUE: Final = r"""(?:(?:basic|bearer|token|digest)\s{1,3})?[^\s"'&,;<>(){}\[\]]{1,4096}"""
_NAMED: Final = re.compile(
    rf"""((?:api[-_]?key|secret|signature|\bsign|pass(?:phrase|word|wd)|token(?!s)|authorization|credential|cookie
            |(?:private|access)[-_]?key)[\w-]{{0,20}}
        (?: \s{{0,3}}=\s{{0,3}}["']? | \\?["']\s{{0,3}}[:=]\s{{0,3}}\\?["']?)
        | (?:api[-_]?key|authorization|cookie)\s{{0,3}}:\s{{0,3}}
       ){_VALUE}""",
    re.I | re.X,
)
"""A name and its value, as in a query, in JSON, and in headers."""
_HINTS: Final = ("key", "secret", "sign", "pass", "token", "authorization", "credential", "cookie")
"""Parts one of which every name in `_NAMED` has."""
_KEY: Final = re.compile(rf"[^/]{{{_LARGE},}}|bot\d|(?:{_NAME.pattern})[^/]*/[^/]{{{_SHORTEST}}}", re.I)
"""What a path holds that may hold a key."""
_BARE: Final = re.compile(r"[A-Za-z0-9_.-]+")
_BOT: Final = re.compile(r"bot(\d+:.+)")
_PAIR: Final = re.compile(r"""[\w-]{1,40}=\s{0,3}"?([^\s",;]{6,})""")


@lru_cache(1024)
def is_secret_name(name: str) -> bool:
    """Whether a header, a parameter or a field of that name holds a secret."""
    return _NAME.search(name) is not None


def _is_secret(name: str, value: str) -> bool:
    return is_secret_name(name) and (name.lower() not in _WEAK or len(value) >= _LARGE // 2)


def secrets_of(request: Request, names: Iterable[str] = ()) -> frozenset[str]:
    """The secrets in a request: in headers, parameters, JSON body and path.

    Args:
        request: the request.
        names: headers (lower case) that hold a secret, whatever they are called.
    """
    found: set[str] = set()
    own = set(names)
    for name, value in (request.headers or {}).items():
        name = name if isinstance(name, str) else _text(name)
        if is_secret_name(name) or name.lower() in own:
            found.update(_of_header(_text(value)))
    for name, value in (request.params or {}).items():
        if is_secret_name(name if isinstance(name, str) else _text(name)):
            values = map(_text, value if isinstance(value, (list, tuple)) else (value,))
            found.update(each for each in values if _is_secret(_text(name), each))
    if request.body is not None:
        found.update(_of_body(request.body))
    if _KEY.search(request.path):
        found.update(_of_path(request.path))
    return frozenset(
        [each for value in found if len(each := value.strip()) >= _SHORTEST and each.lower() not in _WORDS]
    )


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _of_header(value: str) -> Iterator[str]:
    yield value
    scheme, _, credentials = value.strip().partition(" ")
    if credentials:
        yield credentials
        yield from _PAIR.findall(value)
    if scheme.lower() == "basic":
        try:
            pair = base64.b64decode(credentials.strip(), validate=True).decode("utf-8", "replace")
        except (binascii.Error, ValueError):
            return
        yield pair
        yield from pair.partition(":")[::2]
    elif ";" in value:  # cookies
        yield from _PAIR.findall(value)


def _of_body(body: Any) -> Iterator[str]:
    todo: list[tuple[str, Any]] = [("", body)]
    for _ in range(_MOST_NODES):
        if not todo:
            return
        name, value = todo.pop()
        if isinstance(value, Mapping):
            todo += [(name if is_secret_name(name) else _text(inner), each) for inner, each in value.items()]
        elif isinstance(value, (list, tuple)):
            todo += [(name, each) for each in value]
        elif isinstance(value, (str, bytes)) and _is_secret(name, _text(value)):
            yield _text(value)


def _of_path(path: str) -> Iterator[str]:
    segments = [unquote(segment) for segment in path.split("/")]
    return filter(None, map(_key_in, segments, ["", *segments]))


def _key_in(segment: str, before: str) -> str:
    """The key in a segment of a path, such as a bot's token; ``""``: there is none."""
    found = _BOT.fullmatch(segment)
    if found:
        return found[1]
    digits = any(each.isdigit() for each in segment)
    large = len(segment) >= _LARGE and digits and any(each.isalpha() for each in segment)
    named = len(segment) >= _SHORTEST and (digits or segment != segment.lower()) and is_secret_name(before)
    return segment if large or named else ""


def concealed(path: str, key: bytes) -> str:
    """A path in which each segment that may hold a key is replaced by its keyed digest: fit for names and records."""
    if not _KEY.search(path):
        return path
    segments, former = path.split("/"), ""
    for at, segment in enumerate(segments):
        plain = unquote(segment)
        if _key_in(plain, former):
            segments[at] = f"~{digest(key, plain)}"
        former = plain
    return "/".join(segments)


@lru_cache(256)
def _forms(secret: str) -> tuple[str, ...]:
    """The forms in which a secret comes back."""
    raw = secret.encode("utf-8", "surrogatepass")
    found = [secret, *(encode(raw).decode().rstrip("=") for encode in (base64.b64encode, base64.urlsafe_b64encode))]
    if not _BARE.fullmatch(secret):  # else it is written in one way
        once = quote(secret, safe="")
        found += [once, quote(secret), quote_plus(secret), quote(once, safe=""), html.escape(secret)]
        for escaped in (json.dumps(secret), json.dumps(secret, ensure_ascii=False), repr(secret)):
            found += [escaped[1:-1], escaped[1:-1].replace("/", "\\/")]
    return tuple(dict.fromkeys(found))


def holds(content: bytes, secrets: Iterable[str]) -> bool:
    """Whether one of `secrets` stands in a content in any form."""
    return any(form.encode("utf-8", "surrogatepass") in content for secret in secrets for form in _forms(secret))


def struck(text: str, secrets: Iterable[str] = (), mark: str = MARK) -> str:
    """`text` (its beginning, if it is long) without `secrets`, users in URLs, and what stands beside a secret's name."""
    cut = len(text) > _MOST_READ
    text = text[:_MOST_READ]
    low, longest = text.lower(), 0
    found = set()
    for secret in secrets:
        for form in _forms(secret):
            longest = max(longest, len(form))
            if len(form) >= _SHORTEST and form.lower() in low:
                found.add(form)
    if found:
        shapes = "|".join(re.escape(form) for form in sorted(found, key=len, reverse=True))
        text = re.sub(shapes, lambda _: mark, text, flags=re.IGNORECASE)
    if cut and longest:
        text = text[: -min(longest, _MOST_READ)]  # where the text was cut, the beginning of a secret may be left
    if "://" in low:
        text = _USER.sub(mark, text)
    if any(hint in low for hint in _HINTS):  # the expression is slow
        text = _NAMED.sub(lambda hit: hit[1] + mark, text)
    return text


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` on one line, shortened, without `secrets` and everything else that could be a key."""
    text = _RUN.sub(MARK, " ".join(struck(text, secrets).split()))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."

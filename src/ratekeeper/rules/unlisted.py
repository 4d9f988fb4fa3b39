"""Reads refusals that no rule file lists: by the layer in front of the exchange, by words (`words.toml`), by HTTP status."""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from ratekeeper.rules.call import Answer, Outcome
from ratekeeper.rules.reading import dig
from ratekeeper.rules.reading import text as as_text
from ratekeeper.typed import converted, json_decoder

__all__ = ["Unlisted", "maybe_failed", "read_door", "read_unlisted"]

_MOST_STRINGS: Final = 64
_MOST_CHARACTERS: Final = 1024
"""Characters in which words are sought: the expressions take time."""
_LARGEST: Final = 4096
"""Bytes of an answer under a good status that may be an error; errors are short."""
_STATUSES: Final = {
    408: Outcome.FAILED,
    418: Outcome.BANNED,
    420: Outcome.THROTTLED,
    429: Outcome.THROTTLED,
    503: Outcome.OVERLOADED,
    529: Outcome.OVERLOADED,
}
_WORDS: Final = (
    ("banned", Outcome.BANNED),
    ("throttled", Outcome.THROTTLED),
    ("overloaded", Outcome.OVERLOADED),
    ("failed", Outcome.FAILED),
)

_DOOR_STATUSES: Final = frozenset({200, 202, 403, 405, 406, 418, 429, 503})
"""Statuses with which a firewall turns an address away. Its pages for other ones tell of the exchange behind it."""
_TURNED_AWAY: Final = frozenset({403, 429})
"""Those among them that need no other sign than a page where the provider answers in JSON."""
_PAGE: Final = re.compile(r"\s*<(?:!doctype|html|head|body|\?xml|!--)", re.IGNORECASE)
_TAGS: Final = re.compile(r"<(?:script|style)\b.*?</(?:script|style)>|<[^>]*>", re.IGNORECASE | re.DOTALL)

_BETWEEN_PHRASES: Final = (
    r"""[:;,.!?()\[\]{}<>"|/\\=*#~\u3001\u3002\u3008-\u3011\uff01-\uff0f\uff1a-\uff20\uff3b-\uff3d]+"""
)
_BETWEEN_WORDS: Final = r"[ \t\r\f\v_'`&\u00a0\u2010-\u2019\u3000-]+"

_CODES: Final = frozenset(
    {
        "code",
        "retcode",
        "errcode",
        "errorcode",
        "errno",
        "statuscode",
        "resultcode",
        "status",
        "result",
        "state",
        "label",
    }
)
"""Fields, without case and marks, that hold the code of an error; `status` and `result` also hold other things."""
_MESSAGES: Final = frozenset(
    {"msg", "message", "retmsg", "errmsg", "errormsg", "errormessage", "detail", "description", "reason"}
)
_ERRORS: Final = frozenset({"error", "errors", "err"})
_WELL: Final = frozenset(
    {"", "0", "00000", "0000", "200", "200000", "ok", "success", "none", "null", "false", "[]", "{}"}
)
_ILL: Final = frozenset({"error", "err", "fail", "failure"})
_TELLING: Final = frozenset(
    f"{part}{mark}code".strip(mark)
    for part in ("", "ret", "err", "error", "status", "result")
    for mark in ("", "_", "-")
) | {"errno", "status", "state", "result", "label", "success", "succeeded", "ok", "error", "errors", "err"}
"""Fields at the top of an answer that may tell an error, in lower case."""
_PLAIN_GOOD: Final = frozenset(
    f"{mark}{word}{mark}".encode()
    for word in ("", "0", "00000", "0000", "200", "200000", "ok", "success")
    for mark in ("", '"')
) | {b"true", b"null", b"[]", b"{}"}


class Unlisted(NamedTuple):
    """What an answer means that no refusal of a rule file matches.

    Attributes:
        outcome: its class.
        said: what the file could list: the status, and the code or the beginning of the text.
        ordinary: whether there is nothing to list: the call is wrong, or the provider failed (5xx).
        in_part: whether the answer has several parts, such as orders of a batch, of which some may have been carried out.
    """

    outcome: Outcome
    said: str
    ordinary: bool = False
    in_part: bool = False


def maybe_failed(body: bytes, good: re.Pattern[bytes] | None) -> bool:
    """Whether an answer under a good status is worth a closer look. Cheap.

    Args:
        body: of the answer.
        good: finds the mark that the provider writes into each good answer; None: it has none.
    """
    if len(body) > _LARGEST:
        return False
    if good is not None and good.search(body) is not None:
        return False
    if body.lstrip()[:1] != b"{":
        return True
    try:
        fields = json_decoder(dict[str, msgspec.Raw])(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    for name, value in fields.items():
        if name.lower() in _TELLING:
            raw = bytes(value)
            # A list or an object there is the answer itself, unless the field is that of an error.
            if raw.lower() not in _PLAIN_GOOD and (raw[:1] not in b"[{" or "err" in name):
                return True
    return False


def read_door(answer: Answer, body: Any, text: str) -> bool:
    """Whether the layer in front of the exchange gave this answer and turned the address away: a firewall's page or code.

    Args:
        answer: of any status.
        body: parsed; None: it is no JSON.
        text: the beginning of the body.
    """
    if answer.status not in _DOOR_STATUSES:
        return False
    if answer.headers.get("cf-mitigated"):
        return True
    if body is not None:
        return answer.status >= 400 and _words(ascii_only=True).door.search(text[:_LARGEST]) is not None
    if answer.status in _TURNED_AWAY and _is_page(answer.headers, text):
        return True
    words = _words(ascii_only=True)
    return any(marks.search(text[:_LARGEST]) is not None for marks in (words.door, words.page))


def read_unlisted(answer: Answer, body: Any, text: str, good: Mapping[str, frozenset[str]]) -> Unlisted | None:
    """What an answer means by its status and its words; None if it is no error.

    Args:
        answer: one that no refusal of the rule file matches.
        body, text: as for `read_door`.
        good: dotted path -> its values in good answers, as text.
    """
    status, sure = answer.status, True
    if status < 400:
        failed = _failed(body, good)
        if failed is None:
            return None
        sure = failed
    said = _said(status, body, text)
    by_status = _STATUSES.get(status, Outcome.FAILED if status >= 500 else None)
    if by_status is Outcome.BANNED:
        return Unlisted(by_status, said)
    by_words = _meaning("\n".join(map(_plain, _strings(body, text, deep=sure)))[:_MOST_CHARACTERS])
    if status == 451:  # a country is shut out, in words that look like an outage
        by_words = None
    if by_status is not None and by_words in (None, Outcome.FAILED):
        return Unlisted(by_status, said, ordinary=by_status is Outcome.FAILED)
    if by_words is None:
        return Unlisted(Outcome.BAD_REQUEST, said, ordinary=True) if sure else None
    return Unlisted(by_words, said, in_part=status < 400 and _has_parts(body))


def _is_page(headers: Mapping[str, str], text: str) -> bool:
    return _PAGE.match(text) is not None or (headers.get("content-type") or "").lower().startswith("text/html")


# --- whether it is an error ------------------------------------------------------------------------------------------


def _failed(body: Any, good: Mapping[str, frozenset[str]]) -> bool | None:
    """Whether the body of an answer under a good status surely is an error; None: it surely is none, or no JSON."""
    if isinstance(body, list):
        rows = [_failed(each, good) for each in body[:_MOST_STRINGS]]
        return True if rows and all(rows) else None
    if not isinstance(body, dict):
        return None
    for path, values in good.items():
        value = dig(body, tuple(path.split(".")))
        if value is not None:
            return None if as_text(value) in values else True
    maybe = None
    for name, value in list(body.items())[:_MOST_STRINGS]:
        field = re.sub(r"[^a-z]", "", str(name).lower())
        if field in {"success", "succeeded", "ok"} and value is False:
            return True
        shown = as_text(value).strip().lower() if isinstance(value, (str, int)) else ""
        if field in _ERRORS and value and (shown not in _WELL or isinstance(value, (list, dict))):
            return True
        if field in _CODES and shown in _ILL:
            return True
        if field in _CODES and shown not in _WELL:
            maybe = False  # which codes are good ones, nobody says
    return maybe


def _has_parts(body: Any) -> bool:
    """Whether a body holds a list of several objects."""
    lists = [body] if isinstance(body, list) else list(body.values()) if isinstance(body, dict) else []
    return any(isinstance(each, list) and len([row for row in each if isinstance(row, dict)]) > 1 for each in lists)


# --- what it says ----------------------------------------------------------------------------------------------------


def _strings(body: Any, text: str, *, deep: bool) -> Iterator[str]:
    """The texts in a body: all of an error; of an answer that may be one, only its message."""
    if body is None:
        yield _TAGS.sub(" . ", text) if text.lstrip().startswith("<") else text
        return
    queue, count = [("", body)], 0
    while queue and count < _MOST_STRINGS:
        name, value = queue.pop(0)
        count += 1
        if isinstance(value, str):
            yield value[:500]
        elif isinstance(value, dict):
            found = [(str(key), each) for key, each in list(value.items())[:_MOST_STRINGS]]
            if not deep:
                found = [(key, each) for key, each in found if _is_message(key)]
            queue += found
        elif isinstance(value, list):
            queue += [(name, each) for each in value[:_MOST_STRINGS]]


def _is_message(name: str) -> bool:
    field = re.sub(r"[^a-z]", "", name.lower())
    return field in _MESSAGES or field in _CODES or field in _ERRORS


def _plain(text: str) -> str:
    """`text` as `words.toml` wants it: plain words, a line for each phrase."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text)
    text = re.sub(_BETWEEN_PHRASES, "\n", text)
    text = re.sub(r"[^\S\n]*\n\s*", "\n", re.sub(_BETWEEN_WORDS, " ", text))
    return re.sub(r"[\u00c0-\u024f\u1e00-\u1eff]", _without_accent, text).casefold().strip()


def _without_accent(found: re.Match[str]) -> str:
    letter = unicodedata.normalize("NFKD", found[0])[0]
    return {"\u0131": "i", "\u0111": "d", "\u0110": "d"}.get(letter, letter)


def _meaning(phrases: str) -> Outcome | None:
    if not phrases:
        return None
    words = _words(ascii_only=phrases.isascii())
    phrases = words.unrelated.sub(" ", phrases)
    return next((outcome for pattern, outcome in words.classes if pattern.search(phrases)), None)


class _Words(NamedTuple):
    """What `words.toml` says.

    Attributes:
        door, page: find the mark of a firewall in any body, and in one that is no JSON.
        unrelated: what is struck out of phrases.
        classes: what then tells each class, and the class.
    """

    door: re.Pattern[str]
    page: re.Pattern[str]
    unrelated: re.Pattern[str]
    classes: tuple[tuple[re.Pattern[str], Outcome], ...]


@cache
def _words(*, ascii_only: bool) -> _Words:
    """The words; `ascii_only`: those that can stand in such a text, for they are found sooner."""
    text = Path(__file__).with_name("words.toml").read_text("utf-8")
    found = converted(tomllib.loads(text), dict[str, list[str]])

    def any_of(name: str) -> re.Pattern[str]:
        patterns = [each for each in found[name] if each.isascii() or not ascii_only]
        return re.compile("|".join(patterns), re.MULTILINE | re.IGNORECASE)

    classes = tuple((any_of(name), outcome) for name, outcome in _WORDS)
    return _Words(any_of("door"), any_of("page"), any_of("unrelated"), classes)


def _said(status: int, body: Any, text: str) -> str:
    """The status, and the code or else the text, of an answer that the rule file should list."""
    from ratekeeper.rules.secrets import redact  # for those who are refused

    if isinstance(body, list) and body:
        body = body[0]
    if isinstance(body, dict):
        inner = body.get("error")
        for part in (body, inner if isinstance(inner, dict) else {}):
            for name, value in part.items():
                field = re.sub(r"[^a-z]", "", str(name).lower())
                plain = isinstance(value, (str, int)) and not isinstance(value, bool)
                if field in _CODES | _ERRORS and plain and as_text(value).lower() not in _WELL | _ILL:
                    return f"HTTP {status} with {name} {redact(as_text(value)[:60])}"
        text = next(iter(_strings(body, text, deep=True)), "")
    words = re.sub(r"\d+", "#", redact(" ".join(text.split())[:60]))  # numbers differ from answer to answer
    return f"HTTP {status}{': ' + words if words else ''}"

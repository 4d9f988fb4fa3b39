"""Answer bodies as templates: the files under `data/`, and how values are put into them.

A template is JSON. A text in it that begins with ``$`` is the place of a value: ``"$order.price|text"`` is the attribute
`price` of the value `order`, as text. Filters follow bars: ``text``, ``number`` (a float), ``lower``, ``upper``, ``nonzero``
(null instead of zero), ``.8`` (text with eight decimals), and each table under ``[names]`` of the file; ``*`` in such a table
stands for what it does not list.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec

from ratekeeper.typed import converted

__all__ = ["Books", "Sheet", "Trouble", "Word"]

DATA = Path(__file__).with_name("data")
_Filter: TypeAlias = Callable[[Any], Any]
_FILTERS: dict[str, _Filter] = {
    "text": str,
    "number": float,
    "lower": str.lower,
    "upper": str.upper,
    "nonzero": lambda value: value or None,
}


class Word(NamedTuple):
    """How the provider says one error. ``{symbol}`` in the text stands for that parameter, or for what the `Fault` tells."""

    status: int
    code: int | str
    text: str


class Trouble(NamedTuple):
    """One kind of 503: its code and text, and whether the request was carried out behind it."""

    code: int
    text: str
    carried_out: bool


class Books(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where orders are kept: the arguments of an `OrderBook`, with its markets by their name in `MARKETS`."""

    markets: str
    futures: bool
    rejects_makers: bool = True
    first: int = 1_000_001


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    extends: str = ""
    takes_json: bool = False
    ok: str = ""
    failed: str = "{}"
    errors: dict[str, Word] = {}
    full: dict[str, str] = {}
    trouble: list[Trouble] = []
    names: dict[str, dict[str, Any]] = {}
    bodies: dict[str, str] = {}
    ticks: dict[str, str] = {}
    routes: dict[str, dict[str, str]] = {}
    books: dict[str, Books] = {}


class _Slot(NamedTuple):
    """The place of a value: its key, what it is called, how to get at its attribute, and its filters."""

    key: Any
    name: str
    inner: Callable[[Any], Any] | None
    filters: tuple[_Filter, ...]


class _Template:
    """An object or a list with places for values. Only what is not constant is looked at when it is filled."""

    def __init__(
        self, base: dict[str, Any] | list[Any], slots: list[_Slot], inner: list[tuple[Any, _Template]]
    ) -> None:
        self._base = base
        self._slots = slots
        self._inner = inner

    def __call__(self, values: Mapping[str, Any]) -> Any:
        body: Any = self._base.copy()
        for key, name, inner, filters in self._slots:
            value = values[name]
            if inner is not None:
                value = inner(value)
            for change in filters:
                value = change(value)
            body[key] = value
        for key, template in self._inner:
            body[key] = template(values)
        return body


class Sheet:
    """What the data file of one venue says.

    Attributes:
        wraps: whether good answers have an envelope: the body ``ok``.
        takes_json: whether the plain values of a JSON body are parameters like those of the query.
        errors: errors by the name of a `Fault`; ``*``: any other.
        full: texts of refusals, by the unit of the full limit; ``*`` for any other unit.
        trouble: the ways in which it answers 503; if empty, the rule file tells.
        books: its order books by name.
        routes: routes by the access they need (``public``, ``keyed``, ``signed``): each a template, or a handler and its
            words.
    """

    def __init__(self, file: _File) -> None:
        self.takes_json = file.takes_json
        self.errors = file.errors
        self.full = file.full
        self.trouble = file.trouble
        self.routes = file.routes
        self.books = file.books
        self._tables = {name: _table(words) for name, words in file.names.items()}
        self.wraps = bool(file.ok)
        texts = {"ok": file.ok or "{}", "failed": file.failed, **file.bodies}
        texts |= {f"tick {kind}": text for kind, text in file.ticks.items()}
        self._templates = {name: self.read(text) for name, text in texts.items()}

    @classmethod
    def of(cls, venue: str) -> Sheet:
        """The sheet of a venue; an empty one for a venue without a file."""
        return cls(converted(_loaded(venue), _File))

    def read(self, text: str) -> _Template:
        """A template, to be called with the values by name."""
        return self._compiled(msgspec.json.decode(text))

    def _compiled(self, node: Any) -> _Template:
        slots, inner = [], []
        for key, part in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(part, str) and part.startswith("$"):
                slots.append(self._slot(key, part))
            elif isinstance(part, dict | list) and part:
                inner.append((key, self._compiled(part)))
        return _Template(node, slots, inner)

    def _slot(self, key: Any, text: str) -> _Slot:
        path, *filters = text[1:].split("|")
        name, _, rest = path.partition(".")
        return _Slot(key, name, attrgetter(rest) if rest else None, tuple(self._filter(one) for one in filters))

    def _filter(self, name: str) -> _Filter:
        if name.startswith("."):
            return f"{{:{name}f}}".format
        return self._tables.get(name) or _FILTERS[name]

    def knows(self, name: str) -> bool:
        """Whether there is a template of that name."""
        return name in self._templates

    def fill(self, name: str, /, **values: Any) -> Any:
        """The body `name` with `values` in it. Templates of ticks have names like ``tick trade``."""
        return self._templates[name](values)


def _table(words: Mapping[str, Any]) -> _Filter:
    if "*" in words:
        return lambda value: words.get(str(value), words["*"])
    return lambda value: words.get(str(value), value)


def _loaded(venue: str) -> dict[str, Any]:
    """A data file over the one that it extends; tables are joined."""
    path = DATA / f"{venue}.toml"
    if not path.exists():
        return {}
    own = tomllib.loads(path.read_text("utf-8"))
    return _joined(_loaded(own["extends"]), own) if "extends" in own else own


def _joined(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {
        name: _joined(under[name], value) if isinstance(value, dict) and name in under else value
        for name, value in over.items()
    }
    return {**under, **both}

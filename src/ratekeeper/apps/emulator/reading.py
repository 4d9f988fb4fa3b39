"""A raw HTTP request as the rules see it: apart from the clients' adapters, as a server would read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import msgspec

from ratekeeper.rules.call import Call

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["read_call"]


def read_call(method: str, target: str, body: bytes, headers: Mapping[str, str]) -> Call:
    """The call that a request line, its headers and its body make. A name given several times becomes a list."""
    path, _, query = target.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True) if query else []
    tree = None
    if body:
        tree = _json(body)
        if tree is None:
            pairs += parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)
    params: dict[str, Any] = {}
    for name, value in pairs:
        if name not in params:
            params[name] = value
        elif isinstance(params[name], list):
            params[name].append(value)
        else:
            params[name] = [params[name], value]
    return Call(method, path, params, tree, headers)


def _json(body: bytes) -> Any:
    if body.lstrip()[:1] not in (b"{", b"["):
        return None
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None

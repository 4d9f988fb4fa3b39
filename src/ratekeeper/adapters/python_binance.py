"""python-binance, sync and async: ``client = govern(Client(key, secret, ping=False))``, or an ``AsyncClient``.

The gate is in front of ``_request``, which signs. It covers spot, both futures, margin and the rest of the REST API. It does
not see requests that the constructor or ``create`` has sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ratekeeper.adapters._sdk import Sdk, code_of, planned
from ratekeeper.adapters._wire import Outbound

if TYPE_CHECKING:
    from ratekeeper.gate.call import Reply

__all__ = ["SDK", "govern", "patch"]

_NOT_SENT = ("headers", "requests_params")
"""Entries of a call's data that go to the HTTP client."""


def _outbound(given: Mapping[str, Any]) -> Outbound | None:
    data = given["kwargs"].get("data") or {}
    params = {name: value for name, value in data.items() if name not in _NOT_SENT}
    headers = {**given["self"].session.headers, **(data.get("headers") or {})}
    return planned(given["method"], given["uri"], headers, params)


def _proxies(given: Mapping[str, Any]) -> Any:
    data = given["kwargs"].get("data") or {}
    options = {**(given["self"]._requests_params or {}), **(data.get("requests_params") or {})}
    return options.get("proxies")  # an AsyncClient's `https_proxy` is among them


def _family() -> type[Exception]:
    from binance.exceptions import BinanceAPIException

    return BinanceAPIException  # type: ignore[no-any-return]


def _fields(message: str, reply: Reply | None) -> dict[str, Any]:
    status, code = (429, -1003) if reply is None else (reply.status, code_of(reply, "code", -1003))
    return {"status_code": status, "code": code, "message": message, "response": None, "request": None}


SDK = Sdk(
    name="python-binance",
    owners={"binance.client": "Client", "binance.async_client": "AsyncClient"},
    calls={"_request": ("method", "uri", "signed", "force_params", "kwargs")},
    outbound=_outbound,
    family=_family,
    http="session",
    proxies=_proxies,
    fields=_fields,
)
"""The hooks of this SDK."""

govern, patch = SDK.govern, SDK.patch

"""python-binance, sync and async: ``client = govern(Client(key, secret, ping=False))``.

The gate is in front of ``_request``, which signs. Spot, both futures, margin and what else it offers over REST.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters._sdk import Sdk, code_of, install, planned
from ratekeeper.adapters._wire import Outbound

if TYPE_CHECKING:
    from ratekeeper.gate.errand import Reply
    from ratekeeper.gate.gate import Gate

__all__ = ["SDK", "govern", "patch"]

C = TypeVar("C")

_NOT_SENT = ("headers", "requests_params")
"""Entries of a call's data that are meant for the HTTP client."""


def govern(client: C, *, gate: Gate | None = None, priority: Any = None, max_wait: float | None = None) -> C:
    """Governs one ``Client`` or ``AsyncClient`` in place and returns it.

    Args:
        client: as made; what its constructor or ``create`` has sent already went past the gate.
        gate: the gate to ask; ``None`` is the process's shared one.
        priority: class of every call of this client; ``None`` leaves it to the context and the route.
        max_wait: seconds that a call may wait, also for the end of a ban or a pause; ``None``: as the gate says, which
            refuses at once what is shut for long.
    """
    target: Any = client
    from binance.async_client import AsyncClient
    from binance.client import Client

    below: Any
    if isinstance(target, AsyncClient):
        from ratekeeper.adapters.aiohttp import govern as below
    else:
        from ratekeeper.adapters.requests import govern as below
    install(SDK, AsyncClient if isinstance(target, AsyncClient) else Client)
    below(target.session, gate=gate, priority=priority, max_wait=max_wait)
    target.ratekeeper = Governor(gate, priority=priority, timeout=max_wait)
    return client


def patch(module: ModuleType) -> None:
    """Governs every client of an unchanged program.

    Args:
        module: ``binance.client`` or ``binance.async_client``.
    """
    kind = "AsyncClient" if module.__name__ == "binance.async_client" else "Client"
    install(SDK, getattr(module, kind), Governor(lenient=True))


def _outbound(given: Mapping[str, Any]) -> Outbound | None:
    data = given["kwargs"].get("data") or {}
    params = {name: value for name, value in data.items() if name not in _NOT_SENT}
    headers = {**given["self"].session.headers, **(data.get("headers") or {})}
    return planned(given["method"], given["uri"], headers, params)


def _client(given: Mapping[str, Any]) -> tuple[Any, Any]:
    client, data = given["self"], given["kwargs"].get("data") or {}
    options = {**(client._requests_params or {}), **(data.get("requests_params") or {})}
    return client.session, options.get("proxies")  # an AsyncClient's `https_proxy` is among them


def _family() -> type[Exception]:
    from binance.exceptions import BinanceAPIException

    return BinanceAPIException  # type: ignore[no-any-return]


def _fields(message: str, reply: Reply | None) -> dict[str, Any]:
    status, code = (429, -1003) if reply is None else (reply.status, code_of(reply, "code", -1003))
    return {"status_code": status, "code": code, "message": message, "response": None, "request": None}


SDK = Sdk(
    name="python-binance",
    calls={"_request": ("method", "uri", "signed", "force_params", "kwargs")},
    outbound=_outbound,
    client=_client,
    family=_family,
    fields=_fields,
)
"""What is hooked."""

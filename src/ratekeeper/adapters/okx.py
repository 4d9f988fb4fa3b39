"""python-okx: ``api = govern(TradeAPI(key, secret, passphrase))``.

The gate is in front of ``_request``, which signs. Each API object of the SDK is an HTTP client of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters._sdk import Sdk, install, planned
from ratekeeper.adapters._wire import Outbound

if TYPE_CHECKING:
    from ratekeeper.gate.gate import Gate

__all__ = ["SDK", "govern", "patch"]

C = TypeVar("C")


def govern(api: C, *, gate: Gate | None = None, priority: Any = None, max_wait: float | None = None) -> C:
    """Governs one API object in place and returns it.

    Args:
        api: ``okx.Trade.TradeAPI``, ``okx.MarketData.MarketAPI`` and so on.
        gate: the gate to ask; ``None`` is the process's shared one.
        priority: class of every call of this object; ``None`` leaves it to the context and the route.
        max_wait: seconds that a call may wait, also for the end of a ban or a pause; ``None``: as the gate says, which
            refuses at once what is shut for long.
    """
    from okx.okxclient import OkxClient

    from ratekeeper.adapters.httpx import govern as below

    target: Any = api
    install(SDK, OkxClient)
    below(target, gate=gate, priority=priority, max_wait=max_wait)
    target.ratekeeper = Governor(gate, priority=priority, timeout=max_wait)
    return api


def patch(module: ModuleType) -> None:
    """Governs every API object of an unchanged program.

    Args:
        module: ``okx.okxclient``.
    """
    install(SDK, module.OkxClient, Governor(lenient=True))


def _outbound(given: Mapping[str, Any]) -> Outbound | None:
    api, params = given["self"], given["params"]
    url = f"{str(api.base_url).rstrip('/')}{given['request_path']}"
    headers = {"ok-access-key": None if api.API_KEY == "-1" else api.API_KEY}  # "-1": no key
    if given["method"] == "GET":
        return planned("GET", url, headers, {name: value for name, value in params.items() if value != ""})
    return planned(given["method"], url, headers, body=json.dumps(params))


def _family() -> type[Exception]:
    from httpx import TransportError

    return TransportError


SDK = Sdk(
    name="python-okx",
    calls={"_request": ("method", "request_path", "params")},
    outbound=_outbound,
    client=lambda given: (given["self"], None),
    family=_family,
)
"""What is hooked."""

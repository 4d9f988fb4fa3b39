"""python-okx: ``api = govern(TradeAPI(key, secret, passphrase))``, likewise ``okx.MarketData.MarketAPI`` and the others.

The gate is in front of ``_request``, which signs. Each API object of the SDK is an HTTP client of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ratekeeper.adapters._sdk import Sdk, planned
from ratekeeper.adapters._wire import Outbound

__all__ = ["SDK", "govern", "patch"]


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
    owners={"okx.okxclient": "OkxClient"},
    calls={"_request": ("method", "request_path", "params")},
    outbound=_outbound,
    family=_family,
)
"""The hooks of this SDK."""

govern, patch = SDK.govern, SDK.patch

"""pybit: ``session = govern(HTTP(api_key=..., api_secret=...))``, with ``pybit.unified_trading.HTTP``.

The gate is in front of ``_submit_request``. pybit repeats requests by itself, with its own delays. Each repetition waits and
is charged; a signed one before pybit signs it again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ratekeeper.adapters._sdk import Sdk, code_of, planned
from ratekeeper.adapters._wire import Outbound

if TYPE_CHECKING:
    from ratekeeper.gate.call import Reply

__all__ = ["SDK", "govern", "patch"]


def _outbound(given: Mapping[str, Any]) -> Outbound | None:
    query = {name: value for name, value in (given["query"] or {}).items() if value is not None}
    headers = {"x-bapi-api-key": given["self"].api_key if given["auth"] else None}
    if given["method"] == "GET":
        return planned("GET", given["path"], headers, query)
    return planned(given["method"], given["path"], headers, body=json.dumps(query))


def _family() -> type[Exception]:
    from pybit.exceptions import InvalidRequestError

    return InvalidRequestError  # type: ignore[no-any-return]


def _fields(message: str, reply: Reply | None) -> dict[str, Any]:
    at = time.strftime("%H:%M:%S", time.gmtime())
    code, headers = 10006, None
    if reply is not None:
        code, headers = code_of(reply, "retCode", 0) or reply.status, dict(reply.headers)
    return {"message": message, "status_code": code, "time": at, "request": "", "resp_headers": headers}


SDK = Sdk(
    name="pybit",
    owners={"pybit._http_manager": "_V5HTTPManager"},
    calls={"_submit_request": ("method", "path", "query", "auth")},
    outbound=_outbound,
    family=_family,
    http="client",
    fields=_fields,
    signs={"_prepare_headers": ()},
)
"""The hooks of this SDK."""

govern, patch = SDK.govern, SDK.patch

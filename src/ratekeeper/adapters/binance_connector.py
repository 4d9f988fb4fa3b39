"""binance-connector 3.x: ``client = govern(Spot(key, secret))``, or any other ``binance.api.API``.

The gate is in front of the two methods that sign. Unsigned requests wait in ``send_request``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ratekeeper.adapters._sdk import Sdk, code_of, planned
from ratekeeper.adapters._wire import Outbound

if TYPE_CHECKING:
    from ratekeeper.gate.call import Reply

__all__ = ["SDK", "govern", "patch"]


def _outbound(given: Mapping[str, Any]) -> Outbound | None:
    client = given["self"]
    return planned(
        given["http_method"], f"{client.base_url}{given['url_path']}", client.session.headers, given["payload"]
    )


def _family() -> type[Exception]:
    from binance.error import ClientError

    return ClientError  # type: ignore[no-any-return]


def _fields(message: str, reply: Reply | None) -> dict[str, Any]:
    status, code = (429, -1003) if reply is None else (reply.status, code_of(reply, "code", -1003))
    header = {} if reply is None else dict(reply.headers)
    return {"status_code": status, "error_code": code, "error_message": message, "header": header, "error_data": None}


_PARAMETERS = ("http_method", "url_path", "payload")

SDK = Sdk(
    name="binance-connector",
    owners={"binance.api": "API"},
    calls=dict.fromkeys(("sign_request", "limited_encoded_sign_request", "send_request"), _PARAMETERS),
    outbound=_outbound,
    family=_family,
    http="session",
    proxies=lambda given: given["self"].proxies,
    fields=_fields,
)
"""The hooks of this SDK."""

govern, patch = SDK.govern, SDK.patch

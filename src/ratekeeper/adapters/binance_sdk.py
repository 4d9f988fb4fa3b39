"""binance-sdk-spot and the other binance-sdk-*: ``client = govern(Spot(ConfigurationRestAPI(...)))``, or its ``rest_api``.

All of them send through one function of ``binance_common``. It repeats failed reads by itself and signs each time. The
gate makes a repetition wait when the function asks for a timestamp.
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
    import binance_common.utils

    settings, utils = given["configuration"], vars(binance_common.utils)
    params = {**(given["payload"] or {}), **(given["body"] or {})}
    if given["is_signed"] and params.get("timestamp") is not None:
        return None  # the caller's own timestamp ages during the wait: the HTTP client handles that
    query = utils["encoded_string"](utils["clean_none_value"](params))
    return planned(given["method"], f"{settings.base_path}{given['path']}", settings.base_headers, query)


def _family() -> type[Exception]:
    from binance_common.errors import TooManyRequestsError

    return TooManyRequestsError


def _fields(message: str, reply: Reply | None) -> dict[str, Any]:
    after = None if reply is None else int(dict(reply.headers)["Retry-After"])
    code = -1003 if reply is None else code_of(reply, "code", -1003)
    return {"error_message": message, "status_code": code, "retry_after": after}


SDK = Sdk(
    name="binance-common",
    owners={"binance_common.utils": ""},
    calls={"send_request": ("session", "configuration", "method", "path", "payload", "body", "is_signed")},
    outbound=_outbound,
    family=_family,
    carrier=lambda client: getattr(client, "rest_api", client)._session,
    proxies=lambda given: given["configuration"].proxy,
    fields=_fields,
    signs={"get_timestamp": ()},
)
"""The hooks of this SDK."""

govern, patch = SDK.govern, SDK.patch

"""The SDKs of exchanges, each made for a server on loopback and called by its own low-level method."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from ratekeeper import Gate
from ratekeeper.adapters import binance_connector as our_connector
from ratekeeper.adapters import binance_sdk as our_binance_sdk
from ratekeeper.adapters import okx as our_okx
from ratekeeper.adapters import pybit as our_pybit
from ratekeeper.adapters import python_binance as our_python_binance
from ratekeeper.adapters._sdk import Sdk

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # python-binance imports what websockets deprecates
    import aiohttp
    import binance.api
    import binance.async_client
    import binance.client
    import binance.error
    import binance.exceptions
    import binance.spot
    import binance_common.errors
    import binance_common.utils
    import binance_sdk_spot.rest_api
    import httpx
    import okx.okxclient
    import pybit._http_manager
    import pybit.exceptions
    import pybit.unified_trading
    import requests
    from binance_common.configuration import ConfigurationRestAPI


class Kind(NamedTuple):
    """One SDK.

    Attributes:
        sdk: our description of it.
        owner: whose methods are hooked.
        govern: our one-liner.
        make: a client for a base URL, with a key and a secret.
        call: one signed call: client, method, path, parameters.
        family: the error that a refused call raises.
        fields: some of that error's attributes.
        refused: the error that it raises at a 429.
        lost: the error that it raises when the connection is closed without an answer.
        stamp: the parameter or header of a request that holds its signature's timestamp.
        http: the attribute of a client that holds its HTTP client; "": it is one itself.
        json: whether it posts JSON; else a form.
    """

    sdk: Sdk
    owner: Any
    govern: Callable[..., Any]
    make: Callable[[str, str | None, str | None], Any]
    call: Callable[..., Any]
    family: type[Exception]
    fields: Mapping[str, Any]
    refused: type[Exception]
    lost: type[Exception]
    stamp: str
    http: str
    json: bool = False

    def one(
        self, url: str, gate: Gate | None, calls: list[tuple[str, str, dict[str, Any]]], *, keyed: bool = True
    ) -> list[Any]:
        """Makes a client, governs it (twice is once) unless `gate` is None, makes calls; gives their answers."""

        def ready() -> Any:
            client = self.make(url, "kkkk" if keyed else None, "ssss" if keyed else None)
            return client if gate is None else self.govern(self.govern(client, gate=gate), gate=gate)

        if self.owner is binance.async_client.AsyncClient:

            async def main() -> list[Any]:
                client = ready()
                try:
                    return [await self.call(client, *call) for call in calls]
                finally:
                    await client.close_connection()

            return asyncio.run(main())
        client = ready()
        try:
            return [self.call(client, *call) for call in calls]
        finally:
            getattr(client, self.http, client).close()

    def signed_at(self, arrival: Any) -> float:
        """When a request was signed, in Unix seconds."""
        text = arrival.params.get(self.stamp) or arrival.headers[self.stamp]
        return int(text) / 1000 if text.isdigit() else datetime.fromisoformat(text).timestamp()


def _python_binance(client: Any, method: str, path: str, params: dict[str, Any]) -> Any:
    return client._request(method.lower(), client.API_URL + path, True, data=params)


def _python_binance_for(cls: Any) -> Callable[[str, str | None, str | None], Any]:
    def make(url: str, key: str | None, secret: str | None) -> Any:
        if cls is binance.client.Client:
            client = cls(key, secret, ping=False)
            client.loop.close()  # made by the SDK for its websockets, and never closed
            asyncio.set_event_loop(None)
        else:
            client = cls(key, secret)
        client.API_URL = url
        return client

    return make


def _binance_sdk(api: Any, method: str, path: str, params: dict[str, Any]) -> Any:
    send = binance_common.utils.send_request
    halves = {"payload": params} if method == "GET" else {"body": params}
    return send(api._session, api.configuration, method, path, **halves, is_signed=True)


def _pybit(url: str, key: str | None, secret: str | None) -> Any:
    session = pybit.unified_trading.HTTP(api_key=key, api_secret=secret)
    session.endpoint = url
    return session


KINDS = {
    "python-binance": Kind(
        our_python_binance.SDK,
        binance.client.Client,
        our_python_binance.govern,
        _python_binance_for(binance.client.Client),
        _python_binance,
        binance.exceptions.BinanceAPIException,
        {"status_code": 429, "code": -1003},
        binance.exceptions.BinanceAPIException,
        requests.ConnectionError,
        "timestamp",
        "session",
    ),
    "python-binance-async": Kind(
        our_python_binance.SDK,
        binance.async_client.AsyncClient,
        our_python_binance.govern,
        _python_binance_for(binance.async_client.AsyncClient),
        _python_binance,
        binance.exceptions.BinanceAPIException,
        {"status_code": 429, "code": -1003},
        binance.exceptions.BinanceAPIException,
        aiohttp.ClientError,
        "timestamp",
        "session",
    ),
    "binance-connector": Kind(
        our_connector.SDK,
        binance.api.API,
        our_connector.govern,
        lambda url, key, secret: binance.spot.Spot(key, secret, base_url=url),
        lambda client, *call: client.sign_request(*call),
        binance.error.ClientError,
        {"status_code": 429, "error_code": -1003},
        binance.error.ClientError,
        requests.ConnectionError,
        "timestamp",
        "session",
    ),
    "binance-sdk": Kind(
        our_binance_sdk.SDK,
        binance_common.utils,
        our_binance_sdk.govern,
        lambda url, key, secret: binance_sdk_spot.rest_api.SpotRestAPI(
            ConfigurationRestAPI(key, secret, base_path=url, timeout=10_000, backoff=1)
        ),
        _binance_sdk,
        binance_common.errors.TooManyRequestsError,
        {"status_code": -1003, "retry_after": None},
        binance_common.errors.TooManyRequestsError,
        binance_common.errors.NetworkError,
        "timestamp",
        "_session",
    ),
    "pybit": Kind(
        our_pybit.SDK,
        pybit._http_manager._V5HTTPManager,
        our_pybit.govern,
        _pybit,
        lambda session, method, path, params: session._submit_request(method, session.endpoint + path, params, True),
        pybit.exceptions.InvalidRequestError,
        {"status_code": 10006, "resp_headers": None},
        pybit.exceptions.FailedRequestError,
        requests.ConnectionError,
        "x-bapi-timestamp",
        "client",
        json=True,
    ),
    "python-okx": Kind(
        our_okx.SDK,
        okx.okxclient.OkxClient,
        our_okx.govern,
        lambda url, key, secret: okx.okxclient.OkxClient(key, secret, "", base_api=url),
        lambda api, *call: api._request(*call),
        httpx.TransportError,
        {},
        httpx.HTTPStatusError,
        httpx.TransportError,
        "ok-access-timestamp",
        "",
        json=True,
    ),
}

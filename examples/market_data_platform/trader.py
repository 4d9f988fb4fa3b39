"""Places and cancels orders on Binance with httpx. Governed by one line: the client's transport.

It knows nothing of limits and addresses. That its key must leave from one address stands in ratekeeper.toml.
"""

import hashlib
import hmac
import os
import sys
import time
from typing import Any
from urllib.parse import urlencode

import httpx

from ratekeeper.adapters.httpx import Transport

BINANCE = os.environ.get("BINANCE_URL", "https://fapi.binance.com")
KEY, SECRET = os.environ["BINANCE_KEY"], os.environ["BINANCE_SECRET"]


def signed(client: httpx.Client, method: str, path: str, **params: Any) -> Any:
    query = urlencode({**params, "recvWindow": 5000, "timestamp": int(time.time() * 1000)})
    signature = hmac.new(SECRET.encode(), query.encode(), hashlib.sha256).hexdigest()
    answer = client.request(method, f"{path}?{query}&signature={signature}")
    answer.raise_for_status()
    return answer.json()


def main() -> None:
    headers = {"X-MBX-APIKEY": KEY, "User-Agent": "trader"}
    with httpx.Client(base_url=BINANCE, headers=headers, timeout=10, transport=Transport()) as client:
        while True:
            try:
                price = float(client.get("/fapi/v1/ticker/price", params={"symbol": "BTCUSDT"}).json()["price"])
                order = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC"}
                placed = signed(
                    client, "POST", "/fapi/v1/order", **order, quantity="0.01", price=round(price * 0.98, 1)
                )
                signed(client, "DELETE", "/fapi/v1/order", symbol="BTCUSDT", orderId=placed["orderId"])
            except httpx.HTTPError as error:
                print(f"trader: {error}", file=sys.stderr)
            time.sleep(0.2)


if __name__ == "__main__":
    main()

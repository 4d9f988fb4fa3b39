"""Looks at balance, positions and a ticker now and then, with requests. Knows nothing of limits and addresses."""

import hashlib
import hmac
import os
import sys
import time
from urllib.parse import urlencode

import requests

BINANCE = os.environ.get("BINANCE_URL", "https://fapi.binance.com")
KEY, SECRET = os.environ["BINANCE_KEY"], os.environ["BINANCE_SECRET"]


def look(session: requests.Session, path: str) -> None:
    query = urlencode({"recvWindow": 5000, "timestamp": int(time.time() * 1000)})
    signature = hmac.new(SECRET.encode(), query.encode(), hashlib.sha256).hexdigest()
    session.get(f"{BINANCE}{path}?{query}&signature={signature}", timeout=10).raise_for_status()


def main() -> None:
    with requests.Session() as session:
        session.headers.update({"X-MBX-APIKEY": KEY, "User-Agent": "monitor"})
        while True:
            try:
                look(session, "/fapi/v2/balance")
                look(session, "/fapi/v2/positionRisk")
                session.get(f"{BINANCE}/fapi/v1/ticker/24hr?symbol=BTCUSDT", timeout=10).raise_for_status()
            except requests.RequestException as error:
                print(f"monitor: {error}", file=sys.stderr)
            time.sleep(0.5)


if __name__ == "__main__":
    main()

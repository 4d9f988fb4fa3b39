"""A program that wants as much as it can get: candles, each call worth 10. Knows nothing of Ratekeeper.

    python spender.py BASE_URL SECONDS THREADS

It names itself by its process number, so that the emulator can tell equal programs apart.
"""

from __future__ import annotations

import os
import sys
import threading
import time

import requests


def spend(base: str, until: float) -> None:
    """Ask, and ask again."""
    session = requests.Session()
    session.headers["User-Agent"] = f"spender-{os.getpid()}"
    while time.time() < until:
        try:
            wanted = {"symbol": "BTCUSDT", "interval": "1m", "limit": "1500"}
            if session.get(base + "/fapi/v1/klines", params=wanted, timeout=10).status_code != 200:
                time.sleep(0.05)
        except requests.RequestException:
            time.sleep(0.2)


if __name__ == "__main__":
    end = time.time() + float(sys.argv[2])
    threads = [threading.Thread(target=spend, args=(sys.argv[1], end), daemon=True) for _ in range(int(sys.argv[3]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=max(0.0, end - time.time()) + 0.5)

"""A scanner with threads and requests: klines of many symbols, as fast as it can. Knows nothing of Ratekeeper.

python requests_bot.py BASE_URL SECONDS [THREADS]
"""

import sys
import threading
import time

import requests

SYMBOLS = ["BTCUSDT", "ETHUSDT", "BNBUSDT", "SOLUSDT"]


def scan(base: str, until: float, number: int) -> None:
    session = requests.Session()
    session.headers["User-Agent"] = "requests_bot"
    while time.time() < until:
        wanted = {"symbol": SYMBOLS[number % len(SYMBOLS)], "interval": "1m", "limit": "1500"}
        try:
            answer = session.get(base + "/fapi/v1/klines", params=wanted, timeout=10)
        except requests.RequestException as error:
            print("requests_bot:", type(error).__name__, file=sys.stderr)
            time.sleep(0.2)
            continue
        if answer.status_code != 200:
            time.sleep(0.05)  # like many bots: a short pause, then on
        number += 1


def main() -> None:
    base, seconds = sys.argv[1], float(sys.argv[2])
    threads = int(sys.argv[3]) if len(sys.argv) > 3 else 4
    until = time.time() + seconds
    running = [threading.Thread(target=scan, args=(base, until, n), daemon=True) for n in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(timeout=max(0.0, until - time.time()) + 0.5)


if __name__ == "__main__":
    main()

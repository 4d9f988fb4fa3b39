"""A program that places orders and cancels orders at the same time, as fast as it may, through the gate.

    python trader.py BASE_URL KEY THREADS

The threads place orders far from the market; one more cancels what was placed first. It goes on until its standard
input is closed.
"""

from __future__ import annotations

import queue
import sys
import threading
import time

import requests

from ratekeeper.adapters.requests import govern
from ratekeeper.errors import Rejected

BASE, KEY, THREADS = sys.argv[1], sys.argv[2], int(sys.argv[3])
placed: queue.SimpleQueue[str] = queue.SimpleQueue()
over = threading.Event()


def go_on(method: str, order: str) -> bool:
    """Send one request; True if the exchange did what it was asked."""
    wanted = {"symbol": "BTCUSDT", "timestamp": str(int(time.time() * 1000)), "signature": "s"}
    if method == "POST":
        more = {"side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "quantity": "0.01", "price": "50000"}
        wanted |= {**more, "newClientOrderId": order}
    else:
        wanted["origClientOrderId"] = order
    try:
        return session().request(method, f"{BASE}/fapi/v1/order", params=wanted, timeout=10).status_code == 200
    except (Rejected, requests.RequestException):
        over.wait(0.005)
        return False


local = threading.local()


def session() -> requests.Session:
    """One connection a thread."""
    if not hasattr(local, "session"):
        local.session = govern(requests.Session())
        local.session.headers["X-MBX-APIKEY"] = KEY
    made: requests.Session = local.session
    return made


def place(number: int) -> None:
    """Orders without end."""
    for count in range(1_000_000_000):
        if over.is_set():
            return
        order = f"{KEY}-{number}-{count}"
        if go_on("POST", order):
            placed.put(order)


def cancel() -> None:
    """Cancel what was placed, at a pace that leaves something to cancel during a pause."""
    while not over.wait(0.2):
        try:
            order = placed.get(timeout=0.2)
        except queue.Empty:
            continue
        if not go_on("DELETE", order):
            placed.put(order)


if __name__ == "__main__":
    threads = [threading.Thread(target=place, args=(number,), daemon=True) for number in range(THREADS)]
    threads.append(threading.Thread(target=cancel, daemon=True))
    for thread in threads:
        thread.start()
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join(timeout=5)

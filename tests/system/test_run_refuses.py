"""`ratekeeper run` where a library cannot be governed: its import fails with one clear line, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ratekeeper

STARTUP = Path(ratekeeper.__file__).parent / "adapters" / "startup"


@pytest.fixture
def libraries(tmp_path: Path) -> Path:
    """A folder with libraries of those names."""
    (tmp_path / "httpx.py").write_text("made = True\n")
    (tmp_path / "harmless.py").write_text("made = True\n")
    return tmp_path


def run(code: str, libraries: Path, python: str = sys.executable, **env: str) -> subprocess.CompletedProcess[str]:
    """A program as `ratekeeper run` starts it."""
    return subprocess.run(
        [python, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{STARTUP}{os.pathsep}{libraries}", "RATEKEEPER_RUN_FROM": "other", **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


OTHER = getattr(sys, "_base_executable", sys.executable)
"""The interpreter of which the environment was made: Ratekeeper is not installed for it."""


def test_an_interpreter_without_ratekeeper(libraries: Path) -> None:
    """A program that imports nothing that we govern runs as it is; one that does is told why it cannot."""
    done = run("import harmless; print('ran')", libraries, OTHER)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")
    done = run("import httpx; print('ungoverned')", libraries, OTHER)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Ratekeeper is not installed for" in done.stderr.splitlines()[-1]


def test_the_switch_lets_it_run(libraries: Path) -> None:
    """Who says so gets the program, with one line on stderr."""
    done = run("import httpx; print('ran')", libraries, OTHER, RATEKEEPER_UNGOVERNED_ON_ERROR="1")
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert "runs ungoverned" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_library_that_cannot_be_patched(libraries: Path) -> None:
    """What is not as we know it is not imported, and its next import is refused alike."""
    code = (
        "for _ in range(2):\n"
        "    try:\n        import httpx\n"
        "    except ImportError as error:\n        print('refused:', error)\n"
    )
    done = run(code, libraries)
    assert done.stdout.count("refused: ratekeeper: cannot govern httpx: AttributeError") == 2


def test_an_interrupted_first_import(libraries: Path) -> None:
    """An exception that a signal raises while our own modules are imported is the program's; the next import governs."""
    (libraries / "httpx.py").write_text(
        "class HTTPTransport:\n    def handle_request(self): ...\n"
        "class AsyncHTTPTransport:\n    async def handle_async_request(self): ...\n"
    )
    code = (
        "import signal, sys\n"
        "class Stop(Exception): pass\n"
        "def handler(*_):\n    raise Stop\n"
        "signal.signal(signal.SIGALRM, handler)\n"
        "class Strikes:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'ratekeeper.gate.call' and Strikes in map(type, sys.meta_path):\n"
        "            sys.meta_path.remove(strikes)\n"
        "            signal.raise_signal(signal.SIGALRM)\n"
        "strikes = Strikes()\n"
        "sys.meta_path.insert(0, strikes)\n"
        "try:\n    import httpx\n"
        "except Stop:\n    print('stopped', 'httpx' in sys.modules, 'ratekeeper.adapters._client' in sys.modules)\n"
        "import httpx\n"
        "print(hasattr(httpx.HTTPTransport.handle_request, '__wrapped__'))\n"
    )
    done = run(code, libraries)
    assert done.stdout.splitlines() == ["stopped False False", "True"], done.stderr

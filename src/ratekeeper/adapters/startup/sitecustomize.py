"""Start-up hook of ``ratekeeper run``: Python runs this file in every process that has its folder on ``PYTHONPATH``.

It imports Ratekeeper itself only when the program imports a governed library. Until then it costs next to nothing.
It must work in any Python 3 and in any program. So it uses old syntax and does without `typing`, whose import would be
most of its cost. If it cannot govern a library, the import of that library fails with the reason, so that no call goes
uncounted. A program that does not use the library never notices. With RATEKEEPER_UNGOVERNED_ON_ERROR=1 the library is
imported ungoverned, and one line on stderr says so.
"""

import os
import sys
import time
from importlib.machinery import PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib would cost milliseconds

HOOKS = {
    "httpx": "ratekeeper.adapters.httpx",
    "httpx2": "ratekeeper.adapters.httpx",
    "urllib3.connectionpool": "ratekeeper.adapters.urllib3",
    "requests.adapters": "ratekeeper.adapters.requests",
    "aiohttp": "ratekeeper.adapters.aiohttp",
    "websockets.asyncio.client": "ratekeeper.adapters.websockets",
    "websockets.sync.client": "ratekeeper.adapters.websockets",
    "websocket._core": "ratekeeper.adapters.websocket_client",
    "ccxt.base.exchange": "ratekeeper.adapters.ccxt",
    "ccxt.async_support.base.exchange": "ratekeeper.adapters.ccxt",
    "binance.client": "ratekeeper.adapters.python_binance",
    "binance.async_client": "ratekeeper.adapters.python_binance",
    "binance.api": "ratekeeper.adapters.binance_connector",
    "binance_common.utils": "ratekeeper.adapters.binance_sdk",
    "pybit._http_manager": "ratekeeper.adapters.pybit",
    "okx.okxclient": "ratekeeper.adapters.okx",
}
"""Module of a library -> our module whose ``patch(module)`` governs it."""

OURS = ("ratekeeper", "msgspec", "lmdb")
"""Packages to import from the environment of `ratekeeper run` if the program's interpreter lacks them."""


def ungoverned() -> bool:
    """Whether the user prefers ungoverned programs to programs that do not run."""
    return os.environ.get("RATEKEEPER_UNGOVERNED_ON_ERROR", "").strip().lower() in ("1", "true", "yes", "on")


def refuse(name: str, why: str) -> None:
    """Fail the import of a library that cannot be governed, unless the user allows ungoverned calls."""
    text = "ratekeeper: cannot govern " + name + ": " + why
    if not ungoverned():
        raise ImportError(
            text
            + ". It is not imported, for its calls would pass ungoverned (RATEKEEPER_UNGOVERNED_ON_ERROR=1 lets them)"
        )
    sys.stderr.write(time.strftime("%Y-%m-%d %H:%M:%S%z ") + text + "; this program runs ungoverned\n")


def govern(module: "Any") -> None:
    """Patch a library that was just imported. An exception meanwhile, such as an interrupt, leaves nothing half done."""
    before = set(sys.modules)
    try:
        ours = __import__(HOOKS[module.__name__], fromlist=["patch"])
        ours.patch(module)
    except BaseException as error:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "ratekeeper":
                sys.modules.pop(name, None)
        if not isinstance(error, Exception) or not of_ours(error):
            raise
        refuse(module.__name__, type(error).__name__ + ": " + str(error))


def of_ours(error: "Any") -> bool:
    """Whether our code, or code that we import, raised an exception, and not a signal handler of the program."""
    trace, name = error.__traceback__, ""
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next
    known = getattr(sys, "stdlib_module_names", ())
    top = name.partition(".")[0]
    return top in OURS or top in known or top in ("sitecustomize", "importlib", "") or name in HOOKS or top in TOPS


TOPS = {name.partition(".")[0] for name in HOOKS}


class Watcher:
    """An import finder that finds no module itself: it calls `govern` after the import of a library.

    Args:
        why: why no library can be governed here; "": they can.
    """

    def __init__(self, why: str = "") -> None:
        self.why = why

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        """Return the spec of a governed library. The import system calls it for every module."""
        if name not in HOOKS:
            return None
        if self.why:
            refuse(name, self.why)
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return self.watched(spec)
        return None

    def watched(self, spec: "Any") -> "Any":
        """Return the same spec, whose loader reports when it has run the module."""
        loader = spec.loader
        run = getattr(loader, "exec_module", None)
        if run is None:
            refuse(spec.name, "its import cannot be watched")
            return spec

        def exec_module(module: "Any") -> None:
            del loader.exec_module  # restores the loader
            run(module)
            govern(module)

        try:
            loader.exec_module = exec_module
        except AttributeError:
            refuse(spec.name, "its import cannot be watched")
        return spec


class Elsewhere:
    """Finds Ratekeeper and its packages in the environment of `ratekeeper run`. It is the last finder, so that nothing
    changes for the program."""

    def __init__(self, places: "list[str]") -> None:
        self.places = places

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        """Find our packages. The import system calls it if no other finder knows the module."""
        return PathFinder.find_spec(name, self.places, target) if path is None and name in OURS else None


def other_sitecustomize() -> "Any":
    """Return the `sitecustomize` that this one hides, if there is one."""
    others = [place for place in sys.path if os.path.abspath(place or ".") != HERE]  # noqa: PTH100
    return PathFinder.find_spec("sitecustomize", others)


def chain() -> None:
    """Run the `sitecustomize` that this one hides."""
    spec = other_sitecustomize()
    if spec is None or spec.loader is None:
        return
    module = type(sys)(spec.name)
    module.__spec__ = spec
    module.__file__ = spec.origin
    module.__loader__ = spec.loader
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


def start() -> None:
    """Start to watch the program's imports."""
    sys.path[:] = [place for place in sys.path if os.path.abspath(place or ".") != HERE]  # noqa: PTH100
    if PathFinder.find_spec("ratekeeper") is None:
        places = os.environ.get("RATEKEEPER_RUN_FROM", "").split(os.pathsep)
        version, places = places[0], places[1:]
        if sys.version_info < (3, 11) or version != sys.implementation.cache_tag:
            sys.meta_path.insert(0, Watcher("Ratekeeper is not installed for " + sys.executable))
            return
        sys.meta_path.append(Elsewhere(places))
    sys.meta_path.insert(0, Watcher())
    for name in HOOKS:
        if name in sys.modules:
            try:
                govern(sys.modules[name])
            except ImportError:
                del sys.modules[name]  # the next import raises the reason


try:
    chain()
finally:
    start()

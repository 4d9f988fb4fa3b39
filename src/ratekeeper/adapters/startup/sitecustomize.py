"""Start-up hook of ``ratekeeper run``: Python runs this file in every process that has its folder on ``PYTHONPATH``.

It costs next to nothing until the program imports a library that we govern: only then is Ratekeeper itself imported.
It must work in any Python 3 and in any program. So it is written for old ones, and does without `typing`, whose import
would be most of its cost. Where it cannot work, a library that we govern cannot be imported: a program that makes no calls
with it never notices, and one that does gets an error that says why, instead of calls that nobody counts. Who prefers
those sets RATEKEEPER_UNGOVERNED_ON_ERROR=1: then one line on stderr says so.
"""

import os
import sys
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
"""Module of a library -> module of ours whose ``patch(module)`` governs it."""

OURS = ("ratekeeper", "msgspec", "lmdb")
"""Packages found where `ratekeeper run` lives when the program's interpreter does not have them."""


def ungoverned() -> bool:
    """Whether the user prefers programs that run ungoverned to programs that do not run."""
    return os.environ.get("RATEKEEPER_UNGOVERNED_ON_ERROR", "").strip().lower() in ("1", "true", "yes", "on")


def refuse(name: str, why: str) -> None:
    """A library cannot be governed: its import fails, unless the user has said otherwise."""
    text = "ratekeeper: cannot govern " + name + ": " + why
    if not ungoverned():
        raise ImportError(
            text
            + ". It is not imported, for its calls would pass ungoverned (RATEKEEPER_UNGOVERNED_ON_ERROR=1 lets them)"
        )
    sys.stderr.write(text + "; this program runs ungoverned\n")


def govern(module: "Any") -> None:
    """Patches one library that was just imported. What strikes meanwhile, such as an interrupt, leaves nothing half done."""
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
    """Whether an exception was raised by our code, or by what we import, and not by a signal's handler of the program."""
    trace, name = error.__traceback__, ""
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next
    known = getattr(sys, "stdlib_module_names", ())
    top = name.partition(".")[0]
    return top in OURS or top in known or top in ("sitecustomize", "importlib", "") or name in HOOKS or top in TOPS


TOPS = {name.partition(".")[0] for name in HOOKS}


class Watcher:
    """A finder that finds nothing itself: it has `govern` called after one of the libraries was imported.

    Args:
        why: why none of them can be governed here; "": they can.
    """

    def __init__(self, why: str = "") -> None:
        self.why = why

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        """Called by the import system for every module; answers only for ours."""
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
        """The same spec, whose loader says when it has run the module."""
        loader = spec.loader
        run = getattr(loader, "exec_module", None)
        if run is None:
            refuse(spec.name, "its import cannot be watched")
            return spec

        def exec_module(module: "Any") -> None:
            del loader.exec_module  # the loader is itself again
            run(module)
            govern(module)

        try:
            loader.exec_module = exec_module
        except AttributeError:
            refuse(spec.name, "its import cannot be watched")
        return spec


class Elsewhere:
    """Finds Ratekeeper and what it needs where `ratekeeper run` lives. Last in line, so nothing of the program changes."""

    def __init__(self, places: "list[str]") -> None:
        self.places = places

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        """Called by the import system when nothing else knew the module."""
        return PathFinder.find_spec(name, self.places, target) if path is None and name in OURS else None


def other_sitecustomize() -> "Any":
    """The `sitecustomize` that this one hides, if there is one."""
    others = [place for place in sys.path if os.path.abspath(place or ".") != HERE]  # noqa: PTH100
    return PathFinder.find_spec("sitecustomize", others)


def chain() -> None:
    """Runs the `sitecustomize` that Python would have run without us."""
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
    """Begins to watch the program's imports."""
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
                del sys.modules[name]  # whoever imports it is told why it cannot be


try:
    chain()
finally:
    start()

"""The house rules, as tests: what is pure stays pure, modules stay short, names are exact, links resolve."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Container, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "ratekeeper"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

PURE = ("ledger", "policy", "waiting")
"""Packages that only compute: the time is an argument, and nothing is read, written, awaited or drawn by lot."""
IMPURE = frozenset(
    """asyncio concurrent ctypes fcntl http io lmdb logging mmap multiprocessing os pathlib queue random secrets select
    selectors shutil signal socket ssl subprocess sys tempfile threading time urllib uuid warnings""".split()  # noqa: SIM905
)
LAZY = tuple("aiohttp ccxt click httpx httpx2 lmdb redis requests rich urllib3 websocket websockets".split())  # noqa: SIM905
"""What `import ratekeeper` must not load: a program pays only for what it uses."""
LONGEST = 400
EXTRAS = frozenset(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])

MODULES = sorted(SOURCE.rglob("*.py"))
# Start-up files and the demo's programs are run by an interpreter, not imported by anybody.
PUBLIC = [
    path
    for path in MODULES
    if (not path.stem.startswith("_") or path.stem == "__init__") and not {"startup", "programs"} & set(path.parts)
]


def ids(path: Path) -> str:
    """The name of a file as a test shows it."""
    return str(path.relative_to(ROOT))


def each(paths: Sequence[Path]) -> Callable[[Callable[[Path], None]], Callable[[], None]]:
    """Makes one test of a check of one file: it checks all of these, and names each that is wrong."""

    def decorate(check: Callable[[Path], None]) -> Callable[[], None]:
        def test() -> None:
            wrong = []
            for path in paths:
                try:
                    check(path)
                except AssertionError as error:
                    wrong.append(f"{ids(path)}: {error}")
            assert not wrong, "\n".join(wrong)

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate


@cache
def tree(path: Path) -> ast.Module:
    """A module, parsed."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full name of every absolute import, wherever in the module it stands."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, node.module or ""


@each([*PAGES, *MODULES, *ROOT.glob("examples/**/*.md"), *ROOT.glob("examples/**/*.py")])
def test_install_lines_work(path: Path) -> None:
    """Ratekeeper is not published: what tells how to install it names a clone, and extras that exist."""
    for line in re.findall(r"^.*pip install.*$", path.read_text(encoding="utf-8"), re.M):
        for word in re.findall(r"[^\s'\"`]+", line.partition("pip install")[2]):
            assert not word.startswith("ratekeeper"), line
            if word.startswith("."):
                assert "in a clone" in line, line
                named = re.fullmatch(r"\.(?:\[([a-z0-9,]+)\])?", word)
                assert named is not None, line
                assert set((named[1] or "demo").split(",")) <= EXTRAS, line


def test_no_circle_of_files() -> None:
    """No file imports one that needs it, not for its types either: `TYPE_CHECKING` counts."""
    names = {_dotted(path): path for path in MODULES}
    needs = {name: _needed(name, path, names) for name, path in names.items()}
    while leaves := [name for name, others in needs.items() if not others & needs.keys()]:
        for name in leaves:
            del needs[name]
    assert not needs, f"a circle, and what needs it: {sorted(needs)}"


def _dotted(path: Path) -> str:
    parts = ("ratekeeper", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _needed(name: str, path: Path, names: Container[str]) -> set[str]:
    """The files that one names in its imports, wherever these stand."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            module = (base + (node.module or "")).rstrip(".")
            whole = [f"{module}.{alias.name}" for alias in node.names]
            found.update(each if each in names else module for each in whole)
    return {each for each in found if each in names and each != name}


@each([p for p in MODULES if p.relative_to(SOURCE).parts[0] in PURE])
def test_pure(path: Path) -> None:
    """The ledger and the waiting import no clock, I/O, thread, chance or log, and never await."""
    module = tree(path)
    wrong = [f"line {line}: import {name}" for line, name in imported(module) if name.split(".")[0] in IMPURE]
    for node in ast.walk(module):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            wrong.append(f"line {getattr(node, 'lineno', 0)}: {type(node).__name__}")
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in {"open", "print", "input"}
        ):
            wrong.append(f"line {node.lineno}: {node.func.id}()")
    assert not wrong


@each([p for p in MODULES if p.relative_to(SOURCE).parts[0] != "stores"])
def test_nobody_asks_where_a_store_is(path: Path) -> None:
    """Above the stores nobody asks whether one is a network away: a worker of the store's does what may wait."""
    asked = [
        f"line {node.lineno}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr == "remote" and ast.unparse(node.value) != "request"
    ]
    assert not asked


@each(MODULES)
def test_short(path: Path) -> None:
    """A module above 400 lines says why in the first line of its docstring (the word "because" or "long")."""
    if len(path.read_text(encoding="utf-8").splitlines()) > LONGEST:
        first = (ast.get_docstring(tree(path)) or "").split("\n")[0]
        assert re.search(r"\b(because|long)\b", first), f"{ids(path)} is above {LONGEST} lines and gives no reason"


@each(MODULES)
def test_no_state_by_module(path: Path) -> None:
    """No function rebinds a module's names: two gates in one process must not meet."""
    assert not [f"line {node.lineno}" for node in ast.walk(tree(path)) if isinstance(node, ast.Global)]


def load(path: Path) -> ModuleType:
    """Import a module of the package by its file."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))


@each([p for p in PUBLIC if p.stat().st_size])
def test_all_is_exact(path: Path) -> None:
    """`__all__` names every public class and function that the module defines, once each, and only what is there."""
    module = load(path)
    names = getattr(module, "__all__", ())
    assert len(names) == len(set(names))
    assert not [name for name in names if not hasattr(module, name)]
    own = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", "") == module.__name__
        and (inspect.isclass(value) or inspect.isfunction(value))
    }
    assert sorted(own - set(names)) == []


def test_root_is_complete() -> None:
    """Every name the package promises can be had, and `dir()` shows it although it is loaded late."""
    ratekeeper = importlib.import_module("ratekeeper")
    assert {"Gate", "Priority", "priority"} <= set(ratekeeper.__all__)
    assert all(hasattr(ratekeeper, name) for name in ratekeeper.__all__)
    assert set(ratekeeper.__all__) <= set(dir(ratekeeper))


def test_import_is_light() -> None:
    """`import ratekeeper` loads no client library, no terminal library and no store."""
    code = f"import sys, ratekeeper; print(*[name for name in {LAZY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []


def anchors(page: Path) -> set[str]:
    """The fragments that a page's headings offer, as forges write them."""
    heads = re.findall(r"^#{1,6} +(.+?) *$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", head)).strip().lower().replace(" ", "-") for head in heads}


def prose(page: Path) -> str:
    """A page without its code blocks and code spans."""
    return re.sub(r"```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)


@each(PAGES)
def test_links(page: Path) -> None:
    """Every link inside the project leads to a file, and every fragment to a heading in it."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (fragment and file.suffix == ".md" and fragment not in anchors(file)):
            broken.append(target)
    assert not broken


@each([p for p in PAGES if "docs" in p.relative_to(ROOT).parts])
def test_page_is_reachable(page: Path) -> None:
    """Every page of the documentation is linked from its index."""
    index = ROOT / "docs" / "index.md"
    linked = {
        (index.parent / target.split("#")[0]).resolve() for target in re.findall(r"\]\(([^)\s]+)\)", prose(index))
    }
    assert page in linked | {index}


SECRET = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_\w{30,}|\bsk-[\w-]{20,}|\bxox[abp]-[\w-]{10,}"
    r"|(?i:api_?key|secret|token|password)['\"]?\s*[:=]\s*['\"][\w+/=-]{20,}['\"]|['\"][0-9a-zA-Z]{64}['\"]"
)


def test_no_secrets() -> None:
    """Nothing in the project looks like a key, a token or a password, not even as a sample."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    files = [ROOT / name for name in done.stdout.decode().split("\0") if name]
    files = files or [*MODULES, *PAGES]  # an unpacked archive has no git
    found = []
    for file in files:
        if file.is_file() and file.suffix not in {".png", ".gif", ".svg", ".lock"}:
            found += [
                f"{ids(file)}: {hit[:12]}…"
                for hit in SECRET.findall(file.read_text(encoding="utf-8", errors="replace"))
            ]
    assert not found


_BUILDS = re.compile(r"msgspec\.convert\(|\.Decoder\(|decode\([^\n]*type=(?!(list|dict)\[(str|Any|msgspec\.Raw))")


@each([p for p in MODULES if p.name != "typed.py"])
def test_types_are_built_in_one_place(path: Path) -> None:
    """Only `ratekeeper.typed` has msgspec build types: two threads that build one at once crash the interpreter."""
    assert not [line for line in path.read_text().splitlines() if _BUILDS.search(line)]

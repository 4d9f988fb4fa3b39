"""Run the examples of one page of the documentation, in order, as a reader would: `python tests/docs/run_page.py PAGE`.

What a block is, its first line says:

* ```` ```python ````: run. The blocks of a page share their names and may `await`. A block that starts with a comment
  which is a file name (`# bot.py`) is saved under that name instead.
* ```` ```console ````: each line after `$ ` that calls `ratekeeper` or `python` is run and must succeed; `export A=B`
  holds for the rest of the page; other commands (`pip`, `git`, `make`) are for the reader only. A command that ends in
  `&` runs until the page ends. The lines below a command must appear in its output, in that order; `…` stands for
  anything.
* The word `no-run` after the language: Python is parsed and its imports of Ratekeeper are tried; a console block is left
  alone.

Python blocks that name Binance reach the emulators instead, when the environment variable `EXAMPLES_HOSTS` maps the one
to the other; ports 9300 to 9309 anywhere become free ones.
"""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import CodeType
from typing import Any

BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.S | re.M)
PORT = re.compile(r"\b930\d\b")
PATIENCE = 60.0
"""Seconds a command, or the first words of a background command, may take."""


class ExampleError(Exception):
    """An example does not do what the page says."""


class Page:
    """One page: the state its examples share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.background: list[subprocess.Popen[str]] = []
        self.ports: dict[str, str] = {}

    def run(self) -> int:
        """Run every block; return how many ran."""
        text = self.path.read_text(encoding="utf-8")
        count = 0
        try:
            with asyncio.Runner() as loop:
                for match in BLOCK.finditer(text):
                    language, words, source = match.groups()
                    line = text.count("\n", 0, match.start()) + 2
                    run = "no-run" not in words.split()
                    if language == "python":
                        self.python(source, line, loop, run=run)
                    elif language == "console" and run:
                        self.console(source)
                    else:
                        continue
                    count += 1
        finally:
            for process in self.background:
                process.terminate()
                process.wait(10)
        return count

    def port(self, named: re.Match[str]) -> str:
        """The free port that stands for one of the page."""
        if named[0] not in self.ports:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.ports[named[0]] = str(probe.getsockname()[1])
        return self.ports[named[0]]

    def python(self, source: str, line: int, loop: asyncio.Runner, *, run: bool) -> None:
        """Run, save or merely check one block."""
        for real, local in json.loads(os.environ.get("EXAMPLES_HOSTS", "{}")).items():
            source = source.replace(real, local)
        source = PORT.sub(self.port, source)
        if name := re.match(r"# (\w+\.py)\n", source):
            ast.parse(source, name[1])
            Path(name[1]).write_text(source, encoding="utf-8")
            return
        tree = ast.parse("\n" * (line - 1) + source, str(self.path))
        if not run:
            tree.body = [node for node in ast.walk(tree) if is_import_of_ratekeeper(node)]  # type: ignore[misc]
        code: CodeType = compile(tree, str(self.path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        waiting = eval(code, self.names)
        if asyncio.iscoroutine(waiting):
            loop.run(waiting)

    def console(self, source: str) -> None:
        """Run the commands of one block and compare what they print."""
        for part in re.split(r"^\$ ", PORT.sub(self.port, source), flags=re.M)[1:]:
            command, _, expected = part.partition("\n")
            while command.endswith("\\"):
                more, _, expected = expected.partition("\n")
                command = command[:-1] + more.removeprefix("> ")
            if command.startswith("export "):
                os.environ.update(word.split("=", 1) for word in shlex.split(command)[1:])
            elif re.match(r"(\w+=\S+ )*(ratekeeper|python)\b", command):
                self.command(command, [line.strip() for line in expected.splitlines() if line.strip()])

    def command(self, command: str, expected: list[str]) -> None:
        """Run one command until it ends or, in the background, until it has said what it should."""
        stays = command.endswith("&")
        command = command.removesuffix("&")
        pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        if command.startswith("ratekeeper ") and not set(command) & set("|<>$*?~;`"):
            process = subprocess.Popen([sys.executable, "-m", *shlex.split(command)], **pipes)
        else:
            # `exec`: the command itself, not a shell around it, gets the signal that ends it.
            process = subprocess.Popen(re.sub(r"^((?:\w+=\S+ )*)", r"\1exec ", command), shell=True, **pipes)
        printed: list[str] = []
        reader = threading.Thread(target=lambda: printed.extend(iter_lines(process)), daemon=True)
        reader.start()
        deadline = time.monotonic() + PATIENCE
        if stays:
            self.background.append(process)
            while missing(expected, printed) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
        else:
            reader.join(PATIENCE)
            if reader.is_alive():
                process.kill()
                raise ExampleError(f"$ {command}\ndid not end within {PATIENCE:.0f} s; it printed:\n{''.join(printed)}")
            if process.wait():
                raise ExampleError(f"$ {command}\nexit code {process.returncode}; it printed:\n{''.join(printed)}")
        if lost := missing(expected, printed):
            raise ExampleError(f"$ {command}\nprinted:\n{''.join(printed)}\nand not, or not in this order:\n{lost}")


def iter_lines(process: subprocess.Popen[str]) -> Any:
    """The lines a process prints, each as soon as it comes."""
    assert process.stdout is not None
    with process.stdout as stream:
        yield from stream


def missing(expected: list[str], printed: list[str]) -> str:
    """The first expected line that does not follow; "" when all are there."""
    lines = iter([" ".join(line.split()) for line in list(printed)])
    for wanted in expected:
        pattern = ".*".join(re.escape(" ".join(piece.split())) for piece in wanted.split("…"))
        if not any(re.search(pattern, line) for line in lines):
            return wanted
    return ""


def is_import_of_ratekeeper(node: ast.AST) -> bool:
    """Whether a statement imports a name of ours."""
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")[0] == "ratekeeper"
    return isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "ratekeeper" for alias in node.names)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1] / "support"))
    from warm import warm

    try:
        with warm() if "PYTEST_XDIST_TESTRUNUID" in os.environ else nullcontext():
            print(Page(Path(sys.argv[1]).resolve()).run())
    except ExampleError as failed:
        sys.exit(f"{sys.argv[1]}: {failed}")

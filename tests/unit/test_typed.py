"""Typed decoding: the first use of a type in many threads at once."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from ratekeeper.typed import converted, json_decoder, msgpack_decoder

FIRST_USE = """
import sys, threading
from ratekeeper.rules import files
from ratekeeper.rules.book import DATA

sys.setswitchinterval(1e-6)
paths = sorted(DATA.glob("*.toml"))[:8]
together = threading.Barrier(len(paths))
read = []

def work(path):
    together.wait()
    read.append(files.read(path).name)

threads = [threading.Thread(target=work, args=(path,)) for path in paths]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(read) == 8, read
"""


def test_many_threads_use_a_type_first() -> None:
    """Eight threads of a fresh interpreter read their first rule files at the same moment, and none of them crashes it."""
    for _ in range(4):
        done = subprocess.run(
            [sys.executable, "-c", FIRST_USE], capture_output=True, text=True, timeout=30, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


class Row(msgspec.Struct):
    """A record."""

    name: str
    count: int = 0


def test_what_does_not_fit() -> None:
    """Each form gives the value, or says that it does not fit."""
    assert json_decoder(Row)(b'{"name": "a"}') == Row("a")
    assert msgpack_decoder(Row)(msgspec.msgpack.encode({"name": "a", "count": 2})) == Row("a", 2)
    assert converted({"name": "a"}, Row) == Row("a")
    for wrong in (lambda: json_decoder(Row)(b"{}"), lambda: converted({}, Row)):
        with pytest.raises(msgspec.ValidationError):
            wrong()

"""Everything at once on a bad network, for a short while: nothing leaks, no order is placed twice (``make soak-faults``)."""

from __future__ import annotations

import io
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.soak_faults import soak


def test_nothing_leaks(tmp_path: Path) -> None:
    """Tasks, threads and files are as many at the end as in the middle; the program ends cleanly."""
    found = soak(0.7, tmp_path, io.StringIO(), every=2.5, seed=1)
    assert found["code"] == 0, found["said"]
    assert found["placed"] > 10
    assert found["twice"] == 0
    # Memory, objects, ledgers and the shelf fill in the first minutes: the long run looks at them.
    assert not {"tasks", "threads", "files"} & set(found["grew"]), found
    assert found["totals"]["hung_up"] + found["totals"]["errors"] > 0
    assert "ResourceWarning" not in found["said"]

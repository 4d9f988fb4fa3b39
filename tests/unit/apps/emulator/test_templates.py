"""Answer bodies as templates."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from ratekeeper.apps.emulator import templates
from ratekeeper.apps.emulator.templates import DATA, Sheet

OWN = ("binance-spot", "binance-usdm", "bitget", "orderly")
SHARED = ("incoming", "market", "orders", "venue")
"""Modules whose faults every venue must be able to say."""


@pytest.fixture
def sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sheet:
    """A sheet that extends another."""
    monkeypatch.setattr(templates, "DATA", tmp_path)
    (tmp_path / "base.toml").write_text(
        "takes_json = true\n[names]\nside = { BUY = 1 }\n[bodies]\na = '[1]'\nb = '{}'\n"
    )
    (tmp_path / "own.toml").write_text(
        'extends = "base"\n[names]\nstatus = { NEW = "live", "*" = "gone" }\n[bodies]\n'
        """a = '''{"n": "$order.number", "p": ["$order.price|text", {"r": "$order.price|.2"}], "fixed": [1],\n"""
        """ "s": "$it|status"}'''\n"""
    )
    return Sheet.of("own")


def test_values_stand_where_the_template_says(sheet: Sheet) -> None:
    """With their types, attributes and filters; what is constant is as it was, also after a second filling."""
    order = SimpleNamespace(number=7, price=1.5)
    expected = {"n": 7, "p": ["1.5", {"r": "1.50"}], "fixed": [1], "s": "live"}
    assert sheet.fill("a", order=order, it="NEW") == expected
    assert sheet.fill("a", order=order, it="ODD") == {**expected, "s": "gone"}
    assert list(sheet.fill("a", order=order, it="NEW")) == ["n", "p", "fixed", "s"]


def test_a_file_lies_over_the_one_that_it_extends(sheet: Sheet) -> None:
    """Tables are joined; what both have is taken from the upper one."""
    assert sheet.takes_json
    assert sheet.fill("b") == {}
    both = sheet.read('{"x": "$side|side", "y": "$other|side"}')
    assert both({"side": "BUY", "other": "SELL"}) == {"x": 1, "y": "SELL"}


def test_what_a_file_cannot_mean_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that nobody reads, and a filter that nobody knows."""
    monkeypatch.setattr(templates, "DATA", tmp_path)
    (tmp_path / "odd.toml").write_text("bodys = {}\n")
    with pytest.raises(msgspec.ValidationError, match="bodys"):
        Sheet.of("odd")
    (tmp_path / "odd.toml").write_text("""[bodies]\na = '{"x": "$x|louder"}'\n""")
    with pytest.raises(KeyError, match="louder"):
        Sheet.of("odd")
    assert not Sheet.of("nobody").routes


@pytest.mark.parametrize("name", OWN)
def test_every_fault_has_a_word(name: str) -> None:
    """Whatever the shared modules raise, the provider can say it."""
    errors = Sheet.of(name).errors
    modules = [*SHARED, *{"binance-spot": ["binance"], "binance-usdm": ["binance", "binance_usdm"]}.get(name, [name])]
    source = "".join((DATA.parent / f"{module}.py").read_text("utf-8") for module in modules)
    faults = set(re.findall(r'Fault\("([^"]+)"', source)) | {"not open", "not found"}
    unknown = {fault for fault in faults if fault not in errors and "*" not in errors}
    # calls with a JSON body, and cancel-replace, are not for everyone
    assert unknown <= {"binance-spot": {"list"}, "binance-usdm": {"list", "replace"}}.get(name, set())

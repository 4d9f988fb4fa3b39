"""The emulator's options, from the command line and while it runs."""

from __future__ import annotations

import inspect

import pytest

from ratekeeper.apps.emulator import command
from ratekeeper.apps.emulator.options import LimitChange, Options, parse_latency, parse_limit
from ratekeeper.testing import Emulator


def test_latency_is_one_number_or_a_span() -> None:
    """Milliseconds, alone or from-to."""
    assert parse_latency("40") == (40.0, 40.0)
    assert parse_latency("20-80") == (20.0, 80.0)


@pytest.mark.parametrize("text", ["", "x", "80-20", "-5", "1-2-3"])
def test_a_wrong_latency_is_named(text: str) -> None:
    """The error shows what was given."""
    with pytest.raises(ValueError, match="latency must"):
        parse_latency(text)


def test_a_limit_is_changed_by_name() -> None:
    """Capacity alone, or capacity per seconds."""
    assert parse_limit("orders-10s=50") == LimitChange("orders-10s", 50)
    assert parse_limit("orders-10s=50/5") == LimitChange("orders-10s", 50, 5)


@pytest.mark.parametrize("text", ["", "orders-10s", "=5", "orders-10s=", "orders-10s=0", "orders-10s=5/0", "a=b/c"])
def test_a_wrong_limit_is_named(text: str) -> None:
    """The error shows the two forms."""
    with pytest.raises(ValueError, match="NAME=CAPACITY"):
        parse_limit(text)


def test_changes_are_checked_before_anything_changes() -> None:
    """One wrong value leaves all others as they were; an unknown name is an error."""
    options = Options(provider="binance-usdm")
    options.change({"loss": "0.5", "latency": [1, 2]})
    assert (options.loss, options.latency) == (0.5, (1.0, 2.0))
    with pytest.raises(ValueError, match="errors"):
        options.change({"loss": 0.1, "errors": 2})
    with pytest.raises(ValueError, match="speed"):
        options.change({"speed": 1})
    assert options.loss == 0.5


def test_the_command_and_the_test_class_have_the_same_options_and_defaults() -> None:
    """Three places name the options; none may drift. The class differs on purpose: it takes a free port."""
    options = dict(zip(Options.__struct_fields__, _defaults(), strict=True))
    flags = {parameter.name: parameter.default for parameter in command.params if parameter.name != "tied"}
    assert set(flags) == set(options)
    signature = inspect.signature(Emulator).parameters
    assert set(signature) - {"start_timeout"} == set(options)
    same = set(options) - {"provider", "limits", "latency", "port"}
    assert {name: signature[name].default for name in same} == {name: options[name] for name in same}
    context = command.make_context("emulate", ["binance-usdm"])
    assert {name: context.params[name] for name in options} == {**options, "provider": "binance-usdm"}


def _defaults() -> list[object]:
    sample = Options(provider="binance-usdm")
    return [getattr(sample, name) for name in Options.__struct_fields__]

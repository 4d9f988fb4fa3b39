"""Raw requests as the rules see them, and as the order book does."""

from __future__ import annotations

from typing import Any

import pytest

from ratekeeper.apps.emulator.incoming import Fault, Incoming, flat, named, objects, read_call

NOW = 1_800_000_000_000


def test_query_form_and_json_are_told_apart() -> None:
    """Parameters come from query and form; a JSON body is a tree; names given twice are lists."""
    call = read_call("POST", "/a/b?x=1&y=&x=2", b"z=3", {})
    assert (call.method, call.path, call.params, call.body) == (
        "POST",
        "/a/b",
        {"x": ["1", "2"], "y": "", "z": "3"},
        None,
    )
    call = read_call("POST", "/a", b' {"type": "l2Book", "n": [1]}', {})
    assert (call.params, call.body) == ({}, {"type": "l2Book", "n": [1]})


def test_broken_json_is_no_body() -> None:
    """A server answers it all the same."""
    assert read_call("POST", "/a", b"{nope", {}).body is None


def test_plain_values_of_a_body_become_parameters() -> None:
    """Lists and objects stay where they are."""
    assert flat({"a": 1, "b": True, "c": "x", "d": [1], "e": None, "f": 0.5}) == {
        "a": "1",
        "b": "true",
        "c": "x",
        "f": "0.5",
    }
    assert flat([1]) == {}


def test_parameters_get_the_names_of_the_order_book() -> None:
    """What is not there is not made up."""
    asked = named(Incoming({"size": "1", "x": "2"}, NOW, "a"), {"size": "quantity", "price": "price"}, side="BUY")
    assert asked.params == {"quantity": "1", "side": "BUY"}


@pytest.mark.parametrize("tree", [None, {}, {"orders": []}, {"orders": [{}] * 4}, [1]])
def test_a_batch_of_the_wrong_size_is_a_mistake(tree: Any) -> None:
    """None, too many, or no list at all."""
    with pytest.raises(Fault):
        objects(Incoming({}, NOW, "a", tree), "orders", 3)

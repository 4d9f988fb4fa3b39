"""Raw requests as the rules see them."""

from __future__ import annotations

from ratekeeper.apps.emulator.reading import read_call


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

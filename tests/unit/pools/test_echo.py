"""What an echo answers."""

from __future__ import annotations

import pytest

from ratekeeper.pools.echo import public_address


@pytest.mark.parametrize(
    "body",
    [
        b"203.0.113.7\n",
        b'"203.0.113.7"',
        b'{"ip": "203.0.113.7"}',
        b'{"origin": "203.0.113.7, 10.0.0.1"}',
        b'{"address": "203.0.113.7", "port": 1}',
    ],
)
def test_the_usual_dialects(body: bytes) -> None:
    """Plain text, and JSON under the names in use."""
    assert public_address(body) == "203.0.113.7"


@pytest.mark.parametrize("body", [b"", b"<html>hello</html>", b'{"error": "no"}', b"{"])
def test_anything_else_is_no_address(body: bytes) -> None:
    """An echo that says something else is not believed."""
    with pytest.raises(ValueError):
        public_address(body)

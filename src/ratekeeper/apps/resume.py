"""``ratekeeper resume``: the other half of `ratekeeper.apps.pause`."""

from ratekeeper.apps.pause import resume as command

__all__ = ["command"]

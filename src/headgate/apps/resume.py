"""``headgate resume``: the other half of `headgate.apps.pause`."""

from headgate.apps.pause import resume as command

__all__ = ["command"]

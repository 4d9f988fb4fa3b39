"""Tools to test your own bot with: an exchange that enforces its limits on this machine.

::

    from ratekeeper.testing import Emulator

    with Emulator("binance-usdm", window=5, capacity=200) as emulator:
        run_my_bot(base_url=emulator.url)
        assert emulator.stats()["totals"]["throttled"] == 0

For pytest, `ratekeeper.testing.plugin` offers the fixture ``ratekeeper_emulator``.
"""

from ratekeeper.apps.emulator.child import Emulator

__all__ = ["Emulator"]

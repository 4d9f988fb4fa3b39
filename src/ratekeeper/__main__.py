"""``python -m ratekeeper``: the same as ``ratekeeper``."""

from ratekeeper.apps.cli import main

if __name__ == "__main__":
    main()

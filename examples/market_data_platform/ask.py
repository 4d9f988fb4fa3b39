"""One call that asks for a permit and answers: granted, address, reason.

    python ask.py METHOD PATH [--account NAME] [--wait SECONDS]

For programs that send by themselves, in whatever way. Nothing is sent here, so the permit is given back.
"""

import argparse
import json
from typing import Any

from ratekeeper import Gate, Rejected


def ask(gate: Gate, method: str, path: str, account: str, wait: float) -> dict[str, Any]:
    try:
        with gate.permit("binance-usdm", method, path, account=account, timeout=wait) as permit:
            # Here you would send from `permit.egress.bind`, then say `permit.settle(status, headers, body)`.
            permit.refund()
            return {"granted": True, "address": permit.egress.bind, "reason": ""}
    except Rejected as refused:
        return {"granted": False, "address": "", "reason": str(refused)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("method")
    parser.add_argument("path")
    parser.add_argument("--account", default="")
    parser.add_argument("--wait", type=float, default=0.0)
    with Gate() as gate:
        print(json.dumps(ask(gate, **vars(parser.parse_args()))))

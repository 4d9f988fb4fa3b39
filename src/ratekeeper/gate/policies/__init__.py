"""The policies that wrap a governed call, one per file. `ratekeeper.gate.policies.pipeline` sets their order."""

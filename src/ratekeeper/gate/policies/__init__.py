"""What is done around a governed call: one policy a file, in the order of `ratekeeper.gate.policies.pipeline`."""

"""A loopback server that enforces a provider's rule file strictly: a test tool for bots, and the judge of our own ledger.

It counts each request at the instant it arrives, per source address and per account, and answers with the provider's own
headers and bodies, refusals and bans. Its accounting shares no code with `ratekeeper.ledger`.
"""

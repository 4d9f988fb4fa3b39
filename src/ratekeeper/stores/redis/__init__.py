"""The Redis store: machines share ledgers on a Redis or Valkey server; its script does the same arithmetic on its clock."""

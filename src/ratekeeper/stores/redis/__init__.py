"""Ledgers shared by many machines, on a Redis or Valkey server: the same arithmetic, in a script on the server's clock."""

"""The arithmetic of limits: pure functions of state and instant, in integer nanoseconds and units."""

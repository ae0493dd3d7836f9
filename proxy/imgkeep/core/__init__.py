"""The decisions of imgkeep as pure functions of values: no I/O, clock, event loop, logging or randomness."""

"""What imgkeep decides: values in, values out; no I/O, no clock, no event loop, no logging, no randomness."""

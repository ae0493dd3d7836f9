"""Measurements and long runs that are too slow for the test suite: one module each, `python -m bench.NAME`."""

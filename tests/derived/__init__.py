"""Tests of `imgkeep.derived`: pictures in other sizes and formats."""

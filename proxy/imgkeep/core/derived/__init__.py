"""Decisions about derived pictures: which options a request may name, what they make of an original, and its name."""

"""A remote store with a local fallback, and what brings the two together."""

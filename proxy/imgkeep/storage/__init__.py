"""Where images are kept: one module a store."""

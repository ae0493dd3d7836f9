"""Several processes that behave as one: workers of one machine, and nodes with one database."""

"""Several processes that behave as one: supervisor, leases, peers."""

"""A remote store with a local fallback: circuit breaker, read-through copies, and the worker of the outbox."""

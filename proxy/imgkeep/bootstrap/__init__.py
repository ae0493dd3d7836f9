"""The composition root: turns a configuration into storage, services and a server."""

"""imgkeep: a caching reverse proxy that makes temporary image links permanent."""

__version__ = "0.1.0"

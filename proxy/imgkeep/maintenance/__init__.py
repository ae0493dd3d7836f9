"""What operators run over a whole store: verify, reindex, migrate."""

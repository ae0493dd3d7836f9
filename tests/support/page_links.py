"""Links in pages that are rewritten: one that dies, and one that stays."""

from __future__ import annotations

SIGNED = (
    "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20261122%2Feu-west-1%2Fs3%2Faws4_request"
    f"&X-Amz-Date=20261122T100000Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&X-Amz-Signature={'0a' * 32}"
)
DIES = f"https://pictures.example/a.png?{SIGNED}"
STAYS = "https://other.example/b.png"

"""
The advisory locks of PostgreSQL that imgkeep takes: their numbers, which every version has to keep.

Two locks with one number would keep each other out for no reason, so all of them stand here.
"""

from __future__ import annotations

from typing import Final

MIGRATION_LOCK: Final = 0x696D676B6565
"""Of a transaction: one process at a time makes the tables or migrates them."""
JOIN_LOCK: Final = 0x696D676B656D
"""Of a transaction: one process at a time compares and sets the marks of the store and of the secret."""
LEADER_LOCK: Final = 0x696D676B656C
"""Of a session: its member is the leader of the cluster."""
REMOVAL_LOCKS: Final = 0x696D676B
"""Of a session: the first half of the numbers by which one process at a time removes or restores a digest."""
CHANGE_LOCK: Final = 0x696D676B656E
"""Of a transaction: changes become visible in the order of their numbers."""
INDEX_LOCK: Final = 0x696D676B656F
"""Of a transaction: writers of records share it, a removal has it alone."""
RESERVATION_LOCK: Final = 0x696D676B6A6F
"""Of a transaction: one member at a time reserves links."""
CLEANUP_LOCK: Final = 0x696D676B636C
"""Of a transaction: one member at a time deletes old jobs. Two would wait for each other's rows."""

"""
The mark of the store in a database that nodes share: whose records the image index has.

With the database of another store a node would redirect to objects that are not in its bucket, and a removal would
reach the wrong ones. So each process compares the mark when it opens the database, and `imgkeep reindex`, which fills
the index anew, is the only way to change it.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Final

from imgkeep.database.schema_upgrade import IncompatibleDatabase

if TYPE_CHECKING:
    from imgkeep.database.engine import DatabaseEngine

STORE_MARK: Final = "store"
COMPLETE_MARK: Final = "complete"
"""The mark that a reindex has brought in every record."""
_CHARS_MAX: Final = 255


def shorten(store: str) -> str:
    """Return the description of a store as the mark holds it; the end of a long one is a hash."""
    return store if len(store) <= _CHARS_MAX else f"{store[:180]}...{sha256(store.encode()).hexdigest()}"


def describe_other_store(mark: str) -> str:
    """Return why a database with the mark of another store is refused, and the remedy."""
    return (
        f"the database belongs to another store ({mark}): set store.url as on the other nodes, or database.url to a "
        "database of this store alone. If the store has moved, end all nodes, and run `imgkeep reindex`"
    )


def check_store(engine: DatabaseEngine, store: str) -> None:
    """
    Compare the mark, as of the last connection, with the store of this process.

    Raises:
        IncompatibleDatabase: The database belongs to another store.
    """
    mark = engine.marks.get(STORE_MARK, store)
    if mark != store:
        raise IncompatibleDatabase(describe_other_store(mark), place=engine.location)

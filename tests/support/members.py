"""What several members of a cluster in one process begin with: an identity, and a session of the database."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

from imgkeep.cluster.nodes.member import MemberIdentity
from imgkeep.database.session import DatabaseSession

SECRET = "s" * 32
_numbers = count(1)


def make_identity(node: str, **changes: Any) -> MemberIdentity:
    """Return the identity of a process of a node, with an id that no other one has."""
    identity = MemberIdentity(
        id=f"{node}/{next(_numbers):016x}",
        node=node,
        host=node,
        advertise_url=f"http://{node}:1",
        version="1",
        secret=SECRET,
        store="bucket b",
        is_only_process=False,
    )
    return replace(identity, **changes)


def make_session(url: str) -> DatabaseSession:
    return DatabaseSession(url, place="the test's database", draw=lambda: 0)

"""A member of a cluster, as others see it and as it describes itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class Member:
    """
    A live process of some node.

    Attributes:
        id: Its name: that of its node, a slash, and a random part.
        advertise_url: The URL of its node's peer API; empty: the cluster has one node.
    """

    id: str
    node: str
    advertise_url: str
    version: str
    started_at: datetime


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """
    What a member tells of itself.

    Attributes:
        id: As `Member.id`.
        node: `cluster.name`.
        host: The identity of the data folder: two machines of one name differ in it.
        advertise_url: As `Member.advertise_url`.
        secret: `cluster.secret`; empty: this node alone uses the database.
        store: The store, as one text without credentials.
        is_only_process: Whether the node has no other process: an earlier one of this data folder is dead.
    """

    id: str
    node: str
    host: str
    advertise_url: str
    version: str
    secret: str
    store: str
    is_only_process: bool

    def __repr__(self) -> str:
        return f"NodeIdentity({self.id!r})"


def find_rival(identity: NodeIdentity, others: Iterable[tuple[str, str, str]]) -> str | None:
    """
    Return what another machine has that only this node may have; `None`: all is well.

    Args:
        identity: This node.
        others: Name, identity of the data folder and `advertise_url` of the live members of other machines.
    """
    for node, host, url in others:
        if node == identity.node:
            return (
                f"a live node has the same cluster.name, {node!r}, and another data folder ({url or host}): give each "
                "node a name of its own"
            )
        if url and url == identity.advertise_url:
            return f"the live node {node!r} has the same cluster.advertise_url, {url}: give each node its own"
    return None

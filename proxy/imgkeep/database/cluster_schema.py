"""
The tables that only PostgreSQL has: what the nodes of a cluster know of each other.

Two of them are unlogged: PostgreSQL empties them after a crash of its own, and so it may. A lost lease costs a second
fetch, and a lost member joins again.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Index, LargeBinary, MetaData, String, Table, Text, func

cluster_metadata = MetaData()

members = Table(
    "cluster_members",
    cluster_metadata,
    Column("id", String(96), primary_key=True, comment="name of the node, a slash, and a name of the process"),
    Column("node", String(63), nullable=False),
    Column("host", String(64), nullable=False, comment="identity of the data folder of the node"),
    Column("advertise_url", Text, nullable=False, comment="of the peer API; empty: there is one node"),
    Column("version", String(32), nullable=False),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("heartbeat_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("applied", BigInteger, nullable=False, comment="the last of `cluster_changes` that the member has applied"),
    Index("cluster_members_by_node", "node"),
    prefixes=["UNLOGGED"],
)

leases = Table(
    "cluster_leases",
    cluster_metadata,
    Column("name", String(96), primary_key=True),
    Column("member", String(96), nullable=False),
    Column("token", String(32), nullable=False, comment="of this very lease: a late release ends no other one"),
    Column("until", DateTime(timezone=True), nullable=False),
    Column("stored", Boolean, nullable=False, server_default="false", comment="the fill has stored its image"),
    Column("link", LargeBinary, comment="hash of the link that failed"),
    Column("failure", LargeBinary, comment="why; the lease is free for other links"),
    Index("cluster_leases_by_member", "member"),
    Index("cluster_leases_by_end", "until"),
    prefixes=["UNLOGGED"],
)

changes = Table(
    "cluster_changes",
    cluster_metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("member", String(96), nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("cluster_changes_by_time", "at"),
)

"""What every connection to a PostgreSQL has in common: how soon each end notices that the other one is gone."""

from __future__ import annotations

from typing import Final

CONNECT_TIMEOUT_S: Final = 5
"""Timeout for a connection, for each address of the server."""

CONNECTION_PARAMETERS: Final = {
    "connect_timeout": str(CONNECT_TIMEOUT_S),
    "application_name": "imgkeep",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
"""Parameters of a connection (PostgreSQL 17, 32.1.2): a dead server is noticed within some ten seconds."""

SERVER_SETTINGS: Final = (
    "SELECT set_config('tcp_keepalives_idle', '5', false), set_config('tcp_keepalives_interval', '2', false), "
    "set_config('tcp_keepalives_count', '3', false), set_config('tcp_user_timeout', '10000', false), "
    "set_config('idle_in_transaction_session_timeout', '10000', false)"
)
"""
A statement that has the server notice a dead client as soon (PostgreSQL 17, 19.3.2 and 19.11.1), and with it release
what the client has locked, as the leadership. It is a statement because poolers refuse settings at the connection.
"""

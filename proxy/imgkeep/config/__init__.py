"""The configuration: its settings, their sources, and their validation."""

from imgkeep.config.environment import PREFIX as ENVIRONMENT_PREFIX
from imgkeep.config.errors import ConfigError
from imgkeep.config.files import absolute, read_config_file
from imgkeep.config.load import load
from imgkeep.config.mount_rules import check_mount
from imgkeep.config.schema import (
    EXPOSED_FILL_BYTES_PER_DAY,
    Config,
    Fetch,
    Legacy,
    Limits,
    Log,
    Section,
    Security,
    Server,
    Store,
)
from imgkeep.config.urls import data_folder, read_database_url, read_store_url

__all__ = [
    "ENVIRONMENT_PREFIX",
    "EXPOSED_FILL_BYTES_PER_DAY",
    "Config",
    "ConfigError",
    "Fetch",
    "Legacy",
    "Limits",
    "Log",
    "Section",
    "Security",
    "Server",
    "Store",
    "absolute",
    "check_mount",
    "data_folder",
    "load",
    "read_config_file",
    "read_database_url",
    "read_store_url",
]

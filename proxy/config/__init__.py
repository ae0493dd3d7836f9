"""The configuration: its settings, where they are read from, and what is refused."""

from proxy.config.environment import PREFIX as ENVIRONMENT_PREFIX
from proxy.config.errors import ConfigError
from proxy.config.files import absolute, read_config_file
from proxy.config.load import load
from proxy.config.schema import OPEN_BYTES_PER_DAY, Config, Fetch, Legacy, Limits, Log, Section, Security, Server, Store
from proxy.config.urls import data_folder, read_catalog_url, read_store_url
from proxy.config.validate import check_mount

__all__ = [
    "ENVIRONMENT_PREFIX",
    "OPEN_BYTES_PER_DAY",
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
    "read_catalog_url",
    "read_config_file",
    "read_store_url",
]

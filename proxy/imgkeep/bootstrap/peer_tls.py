"""TLS between nodes, from `cluster.tls_certificate`, `cluster.tls_key` and `cluster.tls_ca`."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from imgkeep.config import ConfigError

if TYPE_CHECKING:
    from imgkeep.config.schema import Cluster


def make_server_context(cluster: Cluster) -> ssl.SSLContext | None:
    """
    Return the context of the listener; `None`: it speaks plain HTTP. Blocks.

    Raises:
        ConfigError: The certificate or its key cannot be used.
    """
    if not cluster.tls_certificate:
        return None
    _require_file("cluster.tls_certificate", cluster.tls_certificate)
    _require_file("cluster.tls_key", cluster.tls_key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An encrypted key would be asked for on the terminal.
        context.load_cert_chain(cluster.tls_certificate, cluster.tls_key, password=lambda: "")
    except (ssl.SSLError, ValueError):
        raise ConfigError(
            f"cluster.tls_certificate: {cluster.tls_certificate} and {cluster.tls_key} are no certificate chain with "
            "its private key: expected two PEM files, the key without a passphrase"
        ) from None
    return context


def make_client_context(cluster: Cluster) -> ssl.SSLContext | None:
    """
    Return the context for requests to https:// URLs; `None`: no node has one. Blocks.

    Raises:
        ConfigError: The authorities cannot be used.
    """
    if not cluster.tls_ca:
        return ssl.create_default_context() if cluster.advertise_url.lower().startswith("https:") else None
    _require_file("cluster.tls_ca", cluster.tls_ca)
    try:
        return ssl.create_default_context(cafile=cluster.tls_ca)
    except ssl.SSLError:
        raise ConfigError(
            f"cluster.tls_ca: {cluster.tls_ca} has no certificate: expected a PEM file with the authorities that have "
            "signed the certificates of the nodes"
        ) from None


def require_tls_files(cluster: Cluster) -> None:
    """Check the files of the settings. Blocks. Raises: ConfigError: Some cannot be used."""
    make_server_context(cluster)
    make_client_context(cluster)


def _require_file(setting: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            return
    except OSError as error:
        raise ConfigError(f"{setting}: {path} cannot be read: {error.strerror}") from None

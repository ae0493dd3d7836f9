"""The error of a configuration."""

from __future__ import annotations


class ConfigError(Exception):
    """
    A configuration with unknown settings, or with settings that imgkeep cannot honour.

    Attributes:
        messages: One sentence for each mistake. Each names its setting, and none quotes a secret.
    """

    def __init__(self, *messages: str) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages

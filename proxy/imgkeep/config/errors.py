"""What is wrong with a configuration."""

from __future__ import annotations


class ConfigError(Exception):
    """
    One setting or more is unknown or cannot be honoured.

    Attributes:
        messages: What is wrong, one sentence for each mistake. Each names its setting, and none quotes a secret.
    """

    def __init__(self, *messages: str) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages

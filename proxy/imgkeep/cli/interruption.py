"""The message of an interrupted command: the state of its work, and how to continue."""

from __future__ import annotations

from typing import Final

INTERRUPTED: Final = 130
"""128 and the number of SIGINT, as shells write it."""
TERMINATED: Final = 143
"""128 and the number of SIGTERM."""

_SAFE: Final = "each file is as it was or whole"
_REMEDIES: Final = {
    "save": "run the same command again to go on; what is stored is not fetched again",
    "import": "run the same command again to go on; what is stored is found and not stored twice",
    "rewrite": f"{_SAFE}; run the same command again to go on",
    "migrate": "run the same command again to go on; what is copied is not copied again",
    "verify": "nothing is half done; run the same command again to read all",
    "reindex": "the index lacks the records that were not read; run `imgkeep reindex` again",
    "export": "the output ends early; run it again for all of it",
    "list": "the output ends early",
    "remove": "what it printed is done; run it again for the others",
    "restore": "what it printed is done; run it again for the others",
    "refetch": "what it printed is done; the other images are as they were",
}
_WITH_SERVER: Final = "the server goes on by itself; run the same command again to see how far it is"


class Terminated(BaseException):
    """The end of a command by SIGTERM. No `Exception`, as `KeyboardInterrupt` is none."""


def describe_interruption(command: str, *, has_job: bool) -> str:
    """Return the line for standard error; `has_job`: a server does the work."""
    remedy = _WITH_SERVER if has_job else _REMEDIES.get(command)
    return f"interrupted; {remedy}" if remedy else "interrupted"

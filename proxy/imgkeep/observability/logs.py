"""
Log records without secrets.

Rules:
- Facts go into fields, the message stays constant; one record per request.
- A record never contains a source URL: our records have the key, and the formatter cuts every URL in the texts of
  libraries and tracebacks down to its host.
- A thread prints the records: a terminal or pipe that does not read must not stop the event loop.
"""

from __future__ import annotations

import logging
import re
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from pathlib import PurePath
from queue import Full, Queue
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from imgkeep.config import Log

QUEUE_RECORDS_MAX: Final = 10_000
"""Maximum number of queued records; a full queue drops records, so that slow printing does not fill the memory."""
FLUSH_TIMEOUT_S: Final = 2
"""Timeout for printing the queued records at the end."""

_URL: Final = re.compile(
    r"((?:https?|cloudinary)(?::|%(?:25)*3A)(?:\\?/|\\|%(?:25)*(?:2F|5C)){1,2})(\S*)", re.IGNORECASE
)
_SECRET: Final = re.compile(
    r"\b(AccountKey|SharedAccessSignature|api_secret|sig|X-(?:Amz|Goog)-(?:Credential|Signature|Security-Token))"
    r"=[^\s;&\"']+",
    re.IGNORECASE,
)
"""Keys and signatures of stores outside of URLs: in connection strings, and in targets of requests."""
_ESCAPE: Final = re.compile(r"%(?:25)*([0-9A-F]{2})", re.IGNORECASE)
_HOST: Final = re.compile(r"(?:[a-z0-9_.-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?", re.IGNORECASE)
_BREAKS: Final = {number: f"\\x{number:02x}" for number in (*range(32), 127, 0x85)} | {
    number: f"\\u{number:04x}" for number in (0x2028, 0x2029)
}
"""Characters that could make one record look like two."""
_NOT_PLAIN: Final = re.compile(r'[\s"]')
_PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"}


def redact(text: str) -> str:
    """
    Cut every URL in `text` down to its scheme and host without user information, even if it is encoded many times.

    A URL ends at the next white space: quotes and brackets may be a part of it. Keys and signatures of stores that
    stand outside a URL are left out, too.
    """
    return _SECRET.sub(r"\1=...", _URL.sub(_cut, text))


def _quote(value: object) -> object:
    """Return the value of a field as one word, so that a part of it cannot look like another field."""
    if isinstance(value, str) and _NOT_PLAIN.search(value):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return value


def _cut(match: re.Match[str]) -> str:
    plain = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), match[2])
    host = _HOST.match(re.split(r"[/?#\\]", plain, maxsplit=1)[0].rpartition("@")[2])
    return f"{match[1]}{host[0] if host else ''}/..."


@dataclass(frozen=True, slots=True)
class Shown:
    """A text for a person at a terminal, printed unchanged between the records."""

    text: str


def show(text: str) -> None:
    """
    Print a text to the stream of the records at any `log.level`, by the same thread, because a stopped terminal
    (Ctrl-S) must not block the event loop.
    """
    logging.getLogger().handle(logging.makeLogRecord({"msg": Shown(text.rstrip()), "levelno": logging.CRITICAL}))


class RecordFormatter(logging.Formatter):
    """A formatter to one line per record, as text (`key=value`, quoted if needed) or JSON, without secrets."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.msg, Shown):
            return record.msg.text
        facts: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        for name, value in vars(record).items():
            if name not in _PLAIN:
                facts[name] = redact(value) if isinstance(value, str) else value
        if record.exc_info and record.exc_info[0] is not None:
            # Without the exception's message, which may contain a URL in a spelling that `redact` does not find.
            frames = "".join(traceback.format_tb(record.exc_info[2]))
            facts["error"] = record.exc_info[0].__name__
            facts["traceback"] = redact(frames)
        if self._form == "json":
            return msgspec.json.encode(facts, enc_hook=str).decode()
        time, level, logger, message = (facts.pop(name) for name in ("time", "level", "logger", "message"))
        traceback_lines = facts.pop("traceback", "")
        fields = " ".join(f"{name}={_quote(value)}" for name, value in facts.items() if value is not None)
        line = f"{time} {level} {logger}: {message} {fields}".rstrip().translate(_BREAKS)
        return f"{line}\n{traceback_lines}".rstrip()


def describe_crash(error: BaseException, *, in_full: bool) -> str:
    """
    Describe an unexpected exception in one line; `in_full`: with the traceback, without secrets.

    The description leaves out the exception's message, which may contain anything.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({PurePath(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    what = f"unexpected error: {type(error).__name__}{place}"
    if not in_full:
        return f'{what}; log.level = "debug" shows where it came from'
    return f"{what}\n{redact(''.join(traceback.format_tb(error.__traceback__)))}".rstrip()


@contextmanager
def logging_to(stream: TextIO, settings: Log) -> Iterator[None]:
    """Print the process's log records to `stream`, from a thread of its own, until the end of the block."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(RecordFormatter(settings.format))
    queue: Queue[logging.LogRecord | None] = Queue(QUEUE_RECORDS_MAX)
    listener = _Printer(queue, handler)
    entry = _Entry(queue)
    root = logging.getLogger()
    root.addHandler(entry)
    root.setLevel(settings.level.upper())
    for chatty in (
        "asyncio",
        "alembic",
        "aiohttp.client",
        "aiohttp.internal",
        "aiobotocore",
        "botocore",
        "google",
        "urllib3",
    ):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    for quoting in ("azure", "msal"):
        # Their records quote answers of services, at each attempt; the error of the request says what failed.
        logging.getLogger(quoting).setLevel(logging.CRITICAL)
    server = logging.getLogger("aiohttp.server")
    server.addFilter(_tell_briefly)
    listener.start()
    try:
        yield
    finally:
        server.removeFilter(_tell_briefly)
        root.removeHandler(entry)
        listener.stop()


def _tell_briefly(record: logging.LogRecord) -> bool:
    """
    Shorten the record of a request that is not HTTP, a client's mistake: one line, without aiohttp's quoted bytes.
    """
    from aiohttp.http_exceptions import HttpProcessingError  # noqa: PLC0415 - its logger speaks, so it is there already

    if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg, record.args, record.exc_info = "malformed request", (), None
        return logging.getLogger().isEnabledFor(logging.INFO)
    return True


class _Printer(QueueListener):
    """The printing thread; at the end it prints the rest, unless the reader of the stream takes too long."""

    def __init__(self, records: Queue[logging.LogRecord | None], handler: logging.Handler) -> None:
        super().__init__(records, handler)
        self._records = records

    def stop(self) -> None:
        with suppress(Full):
            self._records.put(None, timeout=FLUSH_TIMEOUT_S)  # the base's sentinel
        if self._thread is not None:
            self._thread.join(FLUSH_TIMEOUT_S)
            self._thread = None


class _Entry(QueueHandler):
    """The handler that queues records unformatted: the printing thread formats them."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
        """Drop the record: the queue is full, because the reader of the stream is too slow."""

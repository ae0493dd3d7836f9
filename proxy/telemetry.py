"""
Counters, and log records that hold no secret.

Rules:
- Facts go into fields, the message stays constant; one record per request.
- A source URL never becomes a string in a record: ours carry the key, and what others write (libraries, tracebacks) has
  every URL cut down to its host before it is printed.
- Printing happens in a thread of its own: a terminal or pipe that does not read must not stop the event loop.
"""

from __future__ import annotations

import logging
import re
import traceback
from bisect import bisect_left
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from logging.handlers import QueueHandler, QueueListener
from pathlib import PurePath
from queue import Full, Queue
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from proxy.core.errors import ImgkeepError, Yielded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TextIO

    from proxy.config import Log

QUEUE_RECORDS_MAX: Final = 10_000
"""When printing falls behind by this much, records are dropped rather than memory filled."""
FLUSH_TIMEOUT_S: Final = 2
"""At the end, for what has not been printed yet."""

SECONDS: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60)
"""By which answers are told apart in the histogram of their times."""

_URL: Final = re.compile(r"(https?(?::|%(?:25)*3A)(?:\\?/|\\|%(?:25)*(?:2F|5C)){1,2})(\S*)", re.IGNORECASE)
_ESCAPE: Final = re.compile(r"%(?:25)*([0-9A-F]{2})", re.IGNORECASE)
_HOST: Final = re.compile(r"(?:[a-z0-9_.-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?", re.IGNORECASE)
_BREAKS: Final = {number: f"\\x{number:02x}" for number in (*range(32), 127, 0x85)} | {
    number: f"\\u{number:04x}" for number in (0x2028, 0x2029)
}
"""What could make one record look like two."""
_NOT_PLAIN: Final = re.compile(r'[\s"]')
_PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"}


def redact(text: str) -> str:
    """
    Cut every URL in `text` down to its scheme and host, user information dropped, however often it is encoded.

    A URL goes on to the next white space: quotes and brackets may be a part of it.
    """
    return _URL.sub(_cut, text)


def _quote(value: object) -> object:
    """Return the value of a field as one word, so that what it quotes cannot look like another field."""
    if isinstance(value, str) and _NOT_PLAIN.search(value):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return value


def _cut(match: re.Match[str]) -> str:
    plain = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), match[2])
    host = _HOST.match(re.split(r"[/?#\\]", plain, maxsplit=1)[0].rpartition("@")[2])
    return f"{match[1]}{host[0] if host else ''}/..."


class Tally(Collector):
    """
    A counter of plain numbers, made into a metric when somebody looks: what is answered in a few microseconds has none
    to spare for the library's own.
    """

    def __init__(self, name: str, help_text: str, labels: Sequence[str] = ()) -> None:
        self._about = (name, help_text)
        self._labels = labels
        self._counts: dict[tuple[str | int, ...], int] = {} if labels else {(): 0}

    def add(self, *values: str | int, number: int = 1) -> None:
        """Count `number` more under these values of the labels."""
        self._counts[values] = self._counts.get(values, 0) + number

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(*self._about, labels=self._labels)
        for values, number in self._counts.items():
            family.add_metric(list(map(str, values)), number)
        yield family


class Times(Collector):
    """A histogram of plain numbers: how long something took."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str] = ()) -> None:
        self._about = (name, help_text)
        self._labels = labels
        self._places: dict[tuple[str, ...], list[int]] = {}
        """How many took no longer than each of `SECONDS` but longer than the one before, and the rest."""
        self._seconds: dict[tuple[str, ...], float] = {}
        if not labels:
            self._begin(())

    def _begin(self, values: tuple[str, ...]) -> list[int]:
        self._seconds[values] = 0
        places = self._places[values] = [0] * (len(SECONDS) + 1)
        return places

    def add(self, seconds: float, *values: str) -> None:
        """Note that it took `seconds` once more."""
        places = self._places.get(values) or self._begin(values)
        places[bisect_left(SECONDS, seconds)] += 1
        self._seconds[values] += seconds

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(*self._about, labels=self._labels)
        bounds = [*map(floatToGoString, SECONDS), "+Inf"]
        for values, places in self._places.items():
            family.add_metric(values, list(zip(bounds, accumulate(places), strict=True)), self._seconds[values])
        yield family


class Watched(Collector):
    """A counter that is kept elsewhere, and asked for when somebody looks."""

    def __init__(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        self._about = (name, help_text)
        self._value = value

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(*self._about, value=self._value())


class ProcessSample(Collector):
    """
    What the library reads of this process from /proc: processor time, memory, open files, start.

    It lists the open files, which takes milliseconds for thousands of connections. So `take` runs in a thread, and the
    metrics show the last sample.
    """

    def __init__(self) -> None:
        self._source = ProcessCollector(registry=None)
        self._sample: list[Metric] = []

    def take(self) -> None:
        """Take a sample. Blocks."""
        self._sample = list(self._source.collect())

    def collect(self) -> Iterator[Metric]:
        yield from self._sample


class Family(msgspec.Struct, array_like=True):
    """A metric of one worker, on its way to another."""

    name: str
    help: str
    kind: str
    samples: list[tuple[str, dict[str, str], float]]


class Counted(msgspec.Struct, array_like=True):
    """What workers have counted: those of `names` together."""

    names: list[str]
    families: list[Family]


class Metrics:
    """All counters, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._added = {"process_resident_memory_bytes", "process_virtual_memory_bytes", "process_open_fds"}
        """Gauges of which every worker has a part."""
        self.process = ProcessSample()
        self.registry.register(self.process)
        # One per answered request. By outcome, the sum over statuses is all that reached that outcome.
        self._requests = self._tally("requests", "Requests answered", "route", "outcome", "status")
        self._sent = self._tally("sent_bytes", "Bytes of bodies handed to clients")
        self._request_times = self._times("request_seconds", "From request to end of answer", "route")
        # fills{outcome="stored"} + "fallback" + "unkept" + "unchanged" + "yielded" + all error codes = ended fills. The
        # providers are names of the provider rules, "other" and "upload", so a stranger cannot make new ones.
        self._fills = self._tally("fills", "Fills that ended", "provider", "outcome")
        self._stored = self._tally("stored_bytes", "Bytes of images kept")
        # One per refusal by a limit on a shared resource; clients that share one fill share its refusal.
        self._refused = self._tally("refused", "Requests refused by a limit on a shared resource", "limit")
        # One per image of a link that was tried ("replace", "equal", "other"), one per probe that ended (its proof),
        # and one per key that was split and per picture that became suspect.
        self._weighed = self._tally(
            "confirmations", "Images compared with what was stored, and what came of it", "outcome"
        )
        # One per refetch of an incomplete image: "whole" and "longer" replaced it, "equal", "other", "failed"; and one
        # more, "confirmed", where equal bytes were taken for all there is.
        self._completed = self._tally(
            "incomplete_refetches", "Incomplete images fetched again, and what came of it", "outcome"
        )
        # One per request sent to an origin: redirects and retries count each.
        self._fetches = self._tally("origin_requests", "Requests to origins", "outcome")
        self._fetch_times = self._times("origin_head_seconds", "From request to the head of an origin's answer")
        # One per call to a remote store, as its library counts it: what it repeats by itself is one.
        self._calls = self._tally("store_requests", "Requests to the remote store", "operation", "outcome")
        self._call_times = self._times(
            "store_request_seconds", "From request to answer of the remote store", "operation"
        )
        # One per attempt to save a link of a job: "saved", "retried", or the code of what it failed with for good.
        self._worked = self._tally("job_links", "Links of jobs that were tried to be saved", "outcome")
        # One per attempt to carry an image over; healed{outcome="failed"} may count an image many times.
        self._healed = self._tally("healed", "Images carried from the fallback to the store", "outcome")
        # One per document that was rewritten, whatever was found in it; and how many links were.
        self._documents = self._tally("documents", "Documents rewritten", "form")
        self._links = self._tally("rewritten_links", "Links rewritten in documents")

    def _tally(self, name: str, help_text: str, *labels: str) -> Tally:
        tally = Tally(f"imgkeep_{name}", help_text, labels)
        self.registry.register(tally)
        return tally

    def _times(self, name: str, help_text: str, *labels: str) -> Times:
        times = Times(f"imgkeep_{name}", help_text, labels)
        self.registry.register(times)
        return times

    def watch(self, name: str, help_text: str, value: Callable[[], float], *, shared: bool = False) -> None:
        """
        Add a gauge that asks `value` whenever somebody looks. `shared`: all workers see the same thing; else each has
        its part, and the parts are added.
        """
        if not shared:
            self._added.add(f"imgkeep_{name}")
        Gauge(f"imgkeep_{name}", help_text, registry=self.registry).set_function(value)

    def watch_count(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Add a counter that asks `value` whenever somebody looks; every worker has its part."""
        self.registry.register(Watched(f"imgkeep_{name}", help_text, value))

    def announce(self, **build: str) -> None:
        """Tell which version of what runs, as labels of a gauge that is 1."""
        gauge = Gauge("imgkeep_build_info", "Versions, as labels", tuple(build), registry=self.registry)
        gauge.labels(**build).set(1)

    def answered(self, route: str, outcome: str, status: int, size: int, seconds: float) -> None:
        """A request was answered with `size` bytes of a body."""
        self._requests.add(route, outcome, status)
        self._sent.add(number=size)
        self._request_times.add(seconds, route)

    def fetched(self, outcome: str, seconds: float) -> None:
        """A request to an origin was answered with a head, or failed."""
        self._fetches.add(outcome)
        self._fetch_times.add(seconds)

    def called(self, operation: str, outcome: str, seconds: float) -> None:
        """A remote store answered, or did not."""
        self._calls.add(operation, outcome)
        self._call_times.add(seconds, operation)

    def healed(self, done: bool) -> None:  # noqa: FBT001 - the one thing it is told
        """An image was carried over, or an attempt to failed."""
        self._healed.add("done" if done else "failed")

    def worked(self, outcome: str) -> None:
        """A link of a job was tried."""
        self._worked.add(outcome)

    def rewritten(self, form: str, links: int) -> None:
        """A document was rewritten."""
        self._documents.add(form)
        self._links.add(number=links)

    def filled(self, provider: str, size: int, *, pending: bool) -> None:
        self._fills.add(provider, "fallback" if pending else "stored")
        self._stored.add(number=size)

    def unchanged(self, provider: str) -> None:
        self._fills.add(provider, "unchanged")

    def weighed(self, outcome: str) -> None:
        """A link was tried, or a probe has ended."""
        self._weighed.add(outcome)

    def completed(self, outcome: str) -> None:
        """An incomplete image was fetched again, or confirmed as it is."""
        self._completed.add(outcome)

    def unkept(self, provider: str) -> None:
        self._fills.add(provider, "unkept")

    def failed(self, provider: str, error: BaseException) -> None:
        code = error.code if isinstance(error, ImgkeepError) else "internal_error"
        self._fills.add(provider, "yielded" if isinstance(error, Yielded) else code)

    def refused(self, limit: str) -> None:
        """A request was refused because a shared resource, or a client's share of it, is used up."""
        self._refused.add(limit)

    def page(self) -> bytes:
        """Return the counters in Prometheus' text format 0.0.4."""
        return generate_latest(self.registry)

    def tell(self, name: str, *, lasting: bool = False) -> bytes:
        """Return all that we have counted, for another worker; `lasting`: only what still counts at our end."""
        families = [
            Family(
                each.name, each.documentation, each.type, [(one.name, one.labels, one.value) for one in each.samples]
            )
            for each in self.registry.collect()
            if not lasting or each.type != "gauge"
        ]
        return msgspec.msgpack.encode(Counted([name], families))

    def sum_up(self, told: Sequence[bytes], *, workers: int, silent: int) -> bytes:
        """
        Return the counters of several workers as one page: counters and histograms added; gauges likewise where each
        has its part, else the greatest. Those of `silent` workers are missing.
        """
        merged = self._merge([msgspec.msgpack.decode(each, type=Counted) for each in told])
        for name, help_text, value in (
            ("imgkeep_workers_counted", "Workers whose counters are in here", workers),
            ("imgkeep_workers_silent", "Workers that did not tell theirs in time", silent),
        ):
            merged.append(Family(name, help_text, "gauge", [(name, {}, value)]))
        return generate_latest(_Page(merged))

    def merge(self, told: Sequence[bytes]) -> bytes:
        """Return what several workers told as if one had."""
        read = [msgspec.msgpack.decode(each, type=Counted) for each in told]
        return msgspec.msgpack.encode(Counted([name for each in read for name in each.names], self._merge(read)))

    def _merge(self, told: Sequence[Counted]) -> list[Family]:
        merged: dict[str, Family] = {}
        values: dict[tuple[str, str, tuple[tuple[str, str], ...]], float] = {}
        for family in (family for each in told for family in each.families):
            merged.setdefault(family.name, Family(family.name, family.help, family.kind, []))
            adds = family.kind != "gauge" or family.name in self._added
            for name, labels, value in family.samples:
                place = (family.name, name, tuple(labels.items()))
                known = values.get(place)
                if known is None:
                    values[place] = value
                else:
                    values[place] = known + value if adds else max(known, value)
        for (family_name, name, labels_of), value in values.items():
            merged[family_name].samples.append((name, dict(labels_of), value))
        return list(merged.values())


class _Page(CollectorRegistry):
    """Metrics that were counted elsewhere."""

    def __init__(self, families: Sequence[Family]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.help, family.kind)
            for name, labels, value in family.samples:
                metric.add_sample(name, labels, value)
            yield metric


@dataclass(frozen=True, slots=True)
class Shown:
    """A text for a person at a terminal, printed as it is between the records."""

    text: str


def show(text: str) -> None:
    """
    Print a text where records go, whatever `log.level` is: from the same thread, because a terminal that is held up
    (Ctrl-S) must not hold up the event loop.
    """
    logging.getLogger().handle(logging.makeLogRecord({"msg": Shown(text.rstrip()), "levelno": logging.CRITICAL}))


class RecordFormatter(logging.Formatter):
    """One line a record, as text (`key=value`, quoted where it holds spaces) or JSON, with every secret out of it."""

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
            # Without the message: it may hold anything, a URL in a spelling that nobody looks for included.
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
    Say what was raised that no code of ours expected, in one line; `in_full`: with the traceback, secrets cut out.

    Without its message, which may hold anything.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({PurePath(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    what = f"an error that imgkeep does not know: {type(error).__name__}{place}"
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
    for chatty in ("asyncio", "alembic", "aiohttp.client", "aiohttp.internal", "aiobotocore", "botocore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
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
    """A request that is not HTTP is the client's mistake: one line, without the bytes that aiohttp would quote."""
    if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg, record.args, record.exc_info = "malformed request", (), None
        return logging.getLogger().isEnabledFor(logging.INFO)
    return True


class _Printer(QueueListener):
    """Prints what is left at the end, but does not wait for ever for somebody to read it."""

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
    """Hands records over as they are: formatting happens in the printing thread."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
        """Drop the record: the queue is full because nobody reads what we print."""

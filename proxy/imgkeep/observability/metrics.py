"""
Counters, gauges and histograms, and the page for Prometheus.

This module is separate from `logs`, because its library takes long to import, and many commands count nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import msgspec
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from imgkeep.core.errors import ImgkeepError, Yielded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SECONDS: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Bounds of the histograms of durations."""


class Tally(Collector):
    """
    A counter of plain numbers, which makes its metric on each scrape: a response in a few microseconds has no time for
    the library's own counters.
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
    """A histogram of durations in plain numbers."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str] = ()) -> None:
        self._about = (name, help_text)
        self._labels = labels
        self._places: dict[tuple[str, ...], list[int]] = {}
        """Number of durations in each bucket between two bounds of `SECONDS`; the last one has no upper bound."""
        self._seconds: dict[tuple[str, ...], float] = {}
        if not labels:
            self._begin(())

    def _begin(self, values: tuple[str, ...]) -> list[int]:
        self._seconds[values] = 0
        places = self._places[values] = [0] * (len(SECONDS) + 1)
        return places

    def add(self, seconds: float, *values: str) -> None:
        """Count one more duration of `seconds`."""
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
    """A counter whose value comes from a callback on each scrape."""

    def __init__(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        self._about = (name, help_text)
        self._value = value

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(*self._about, value=self._value())


class ProcessSample(Collector):
    """
    A sample of the library's metrics of this process, read from /proc: processor time, memory, open files, start.

    The library lists the open files, which takes milliseconds with thousands of connections. So `take` runs in a
    thread, and the metrics show the last sample.
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
    """A metric of one worker, in the form for another worker."""

    name: str
    help: str
    kind: str
    samples: list[tuple[str, dict[str, str], float]]


class Counted(msgspec.Struct, array_like=True):
    """The sum of the metrics of the workers in `names`."""

    names: list[str]
    families: list[Family]


class Metrics:
    """All counters, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._added = {"process_resident_memory_bytes", "process_virtual_memory_bytes", "process_open_fds"}
        """Gauges whose values add up over the workers."""
        self.process = ProcessSample()
        self.registry.register(self.process)
        # One per answered request. By outcome, the sum over statuses is all that reached that outcome.
        self._requests = self._tally("requests", "Requests answered", "route", "outcome", "status")
        self._sent = self._tally("sent_bytes", "Bytes of bodies handed to clients")
        self._request_times = self._times("request_seconds", "From request to end of answer", "route")
        # fills{outcome="stored"} + "fallback" + "not_stored" + "unchanged" + "yielded" + all error codes = ended fills.
        # The providers are names of the provider rules, "other" and "upload", so a stranger cannot make new ones.
        self._fills = self._tally("fills", "Fills that ended", "provider", "outcome")
        self._stored = self._tally("stored_bytes", "Bytes of images stored")
        # One per refusal by a limit on a shared resource; clients that share one fill share its refusal.
        self._refused = self._tally("refused", "Requests refused by a limit on a shared resource", "limit")
        # One per second fill ("replace", "equal", "other"), one per probe that ended (its result), one per key that was
        # split, and one per image that became suspect.
        self._weighed = self._tally(
            "confirmations", "Comparisons of images with the stored ones, by their result", "outcome"
        )
        # One per refetch of an incomplete image: "whole" and "longer" replaced it, "equal", "other", "failed"; and one
        # more, "confirmed", when equal bytes have confirmed the image as it is.
        self._completed = self._tally(
            "incomplete_refetches", "Refetches of incomplete images, by their result", "outcome"
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
        # One per attempt to upload an image; outbox_uploads{outcome="failed"} may count an image many times.
        self._outbox_uploads = self._tally(
            "outbox_uploads", "Uploads from the fallback store to the primary", "outcome"
        )
        # One per request of this process to another node, and one per request to this one that was refused.
        self._peer_asked = self._tally("peer_requests", "Requests to other nodes, by their outcome", "outcome")
        self._peer_refused = self._tally(
            "peer_requests_refused", "Requests to the peer API that no node of this cluster sent", "reason"
        )
        # One per rewritten document, with or without links; and one per rewritten link.
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
        Add a gauge with the callback `value`. `shared`: all workers have the same value; else their values add up.
        """
        if not shared:
            self._added.add(f"imgkeep_{name}")
        Gauge(f"imgkeep_{name}", help_text, registry=self.registry).set_function(value)

    def watch_count(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Add a counter with the callback `value`; the values of the workers add up."""
        self.registry.register(Watched(f"imgkeep_{name}", help_text, value))

    def announce(self, **build: str) -> None:
        """Add a gauge of value 1 with the versions as labels."""
        gauge = Gauge("imgkeep_build_info", "Versions, as labels", tuple(build), registry=self.registry)
        gauge.labels(**build).set(1)

    def answered(self, route: str, outcome: str, status: int, size: int, seconds: float) -> None:
        """Count a response with `size` bytes of a body."""
        self._requests.add(route, outcome, status)
        self._sent.add(number=size)
        self._request_times.add(seconds, route)

    def fetched(self, outcome: str, seconds: float) -> None:
        """Count a request to an origin, when its head came or it failed."""
        self._fetches.add(outcome)
        self._fetch_times.add(seconds)

    def called(self, operation: str, outcome: str, seconds: float) -> None:
        """Count a call to a remote store."""
        self._calls.add(operation, outcome)
        self._call_times.add(seconds, operation)

    def outbox_uploads(self, done: bool) -> None:  # noqa: FBT001 - the one thing it is told
        """Count an upload to the primary, done or failed."""
        self._outbox_uploads.add("done" if done else "failed")

    def worked(self, outcome: str) -> None:
        """Count an attempt to save a link of a job."""
        self._worked.add(outcome)

    def peer_asked(self, outcome: str) -> None:
        """Count a request to another node."""
        self._peer_asked.add(outcome)

    def peer_refused(self, reason: str) -> None:
        """Count a refused request to the peer API for nodes."""
        self._peer_refused.add(reason)

    def rewritten(self, form: str, links: int) -> None:
        """Count a rewritten document and its links."""
        self._documents.add(form)
        self._links.add(number=links)

    def filled(self, provider: str, size: int, *, pending: bool) -> None:
        self._fills.add(provider, "fallback" if pending else "stored")
        self._stored.add(number=size)

    def unchanged(self, provider: str) -> None:
        self._fills.add(provider, "unchanged")

    def weighed(self, outcome: str) -> None:
        """Count the result of a second fill or of a probe."""
        self._weighed.add(outcome)

    def completed(self, outcome: str) -> None:
        """Count a refetch of an incomplete image, or its confirmation."""
        self._completed.add(outcome)

    def not_stored(self, provider: str) -> None:
        self._fills.add(provider, "not_stored")

    def failed(self, provider: str, error: BaseException) -> None:
        code = error.code if isinstance(error, ImgkeepError) else "internal_error"
        self._fills.add(provider, "yielded" if isinstance(error, Yielded) else code)

    def refused(self, limit: str) -> None:
        """Count a refusal by a limit on a shared resource."""
        self._refused.add(limit)

    def page(self) -> bytes:
        """Return the counters in Prometheus' text format 0.0.4."""
        return generate_latest(self.registry)

    def tell(self, name: str, *, lasting: bool = False) -> bytes:
        """Return the metrics of this worker for another one; `lasting`: only those that count after its end."""
        families = [
            Family(
                each.name, each.documentation, each.type, [(one.name, one.labels, one.value) for one in each.samples]
            )
            for each in self.registry.collect()
            if not lasting or each.type != "gauge"
        ]
        return msgspec.msgpack.encode(Counted([name], families))

    def sum_up(self, told: Sequence[bytes], *, workers: int, unresponsive: int) -> bytes:
        """
        Return the metrics of several workers as one page. Counters and histograms add up; so do gauges of parts, of
        others the greatest value counts. The metrics of `unresponsive` workers are missing.
        """
        merged = self._merge([msgspec.msgpack.decode(each, type=Counted) for each in told])
        for name, help_text, value in (
            ("imgkeep_workers_counted", "Workers whose metrics this page contains", workers),
            ("imgkeep_workers_unresponsive", "Workers that did not send their metrics in time", unresponsive),
        ):
            merged.append(Family(name, help_text, "gauge", [(name, {}, value)]))
        return generate_latest(_Page(merged))

    def merge(self, told: Sequence[bytes]) -> bytes:
        """Merge the metrics of several workers into the form of one."""
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
    """A registry of merged metrics."""

    def __init__(self, families: Sequence[Family]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.help, family.kind)
            for name, labels, value in family.samples:
                metric.add_sample(name, labels, value)
            yield metric

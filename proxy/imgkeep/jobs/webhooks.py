"""
Webhooks: signed messages that say that a job has ended, as Standard Webhooks describes them.

https://www.standardwebhooks.com: the receiver knows the job by `webhook-id`, and checks `webhook-signature`.
"""

from __future__ import annotations

import asyncio
import logging
from base64 import b64encode
from contextlib import suppress
from hashlib import sha256
from hmac import digest
from typing import TYPE_CHECKING, Final

import msgspec

from imgkeep.core.backoff import backoff_s
from imgkeep.core.errors import ImgkeepError, InvalidRequest, SourceRejected, StorageError
from imgkeep.core.source_url import read_source
from imgkeep.jobs.job_json import describe_job

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.clock import Clock
    from imgkeep.core.jobs import Webhook
    from imgkeep.database import DurableJobs
    from imgkeep.origin import OriginClient

DELAY_MIN_S: Final = 10
"""Delay after the first failed delivery; each further one doubles it."""
DELAY_MAX_S: Final = 5120
"""Maximum delay between two deliveries."""
ATTEMPTS_MAX: Final = 10
"""Maximum number of deliveries: the last one some three hours after the first."""
CONCURRENT_MAX: Final = 8
"""Maximum number of deliveries at a time."""
IDLE_S: Final = 3600
"""Interval of reads for webhooks if none waits: the runner also reads them as soon as a job ends."""

log = logging.getLogger(__name__)


class WebhookSender:
    """
    Delivers the webhooks of jobs that have ended.

    Args:
        jobs: The jobs in the database, with their webhooks.
        client: Sends messages; its policy and its address guard hold for them, too.
        key: Signs messages; `None`: the configuration has no key, so no job may have a webhook.
        clock: Returns the time for messages.
        draw: Returns a random number from 0 to 1.
    """

    def __init__(
        self, jobs: DurableJobs, client: OriginClient, key: str | None, clock: Clock, draw: Callable[[], float]
    ) -> None:
        self._jobs = jobs
        self._client = client
        self._key = key
        self._clock = clock
        self._draw = draw

    def check(self, url: str) -> None:
        """
        Check that a job can have a webhook.

        Raises:
            InvalidRequest: There is no key to sign it.
            InvalidSource: The URL is none.
        """
        if self._key is None:
            raise InvalidRequest("webhook needs security.signing_keys, by which it is signed")
        read_source(url)

    async def deliver_due(self) -> float:
        """
        Deliver the webhooks that are due; return the seconds until the next one is.

        Raises:
            StorageError: The database failed.
        """
        webhooks = await self._jobs.webhooks(CONCURRENT_MAX)
        due = [webhook for webhook in webhooks if webhook.due_in_s <= 0]
        async with asyncio.TaskGroup() as group:
            for webhook in due:
                group.create_task(self._deliver(webhook))
        return 0 if due else min((webhook.due_in_s for webhook in webhooks), default=IDLE_S)

    async def _deliver(self, webhook: Webhook) -> None:
        reason, is_final = await self._send(webhook)
        with suppress(StorageError):  # the database reports its own failures; this delivery is repeated
            if not reason or is_final:
                if reason:
                    log.error("webhook delivery failed", extra={"job": webhook.job.id, "reason": reason})
                await self._jobs.remove_webhook(webhook)
            else:
                delay_s = backoff_s(webhook.attempts, first_s=DELAY_MIN_S, longest_s=DELAY_MAX_S, draw=self._draw())
                await self._jobs.postpone_webhook(webhook, delay_s)

    async def _send(self, webhook: Webhook) -> tuple[str, bool]:
        """Send a message; return why it failed, empty where it did not, and whether another attempt is useless."""
        job, now = webhook.job, self._clock()
        body = msgspec.json.encode({"type": "job.done", "timestamp": now, "data": describe_job(job)})
        stamp = str(int(now.timestamp()))
        mac = digest((self._key or "").encode(), f"{job.id}.{stamp}.".encode() + body, sha256)
        headers = {
            "webhook-id": job.id,
            "webhook-timestamp": stamp,
            "webhook-signature": f"v1,{b64encode(mac).decode()}",
        }
        is_last = webhook.attempts + 1 >= ATTEMPTS_MAX
        try:
            status = await self._client.post(read_source(webhook.url), body, headers)
        except ImgkeepError as error:
            return str(error), is_last or isinstance(error, SourceRejected)
        return "" if 200 <= status < 300 else f"the receiver answered {status}", is_last

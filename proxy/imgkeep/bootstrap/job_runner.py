"""Builds the job runner: for the only process with a database, or for one of several members of a cluster."""

from __future__ import annotations

import random
import secrets
from typing import TYPE_CHECKING

from imgkeep.database import job_notices
from imgkeep.jobs.link_queue import OwnQueue, SharedQueue
from imgkeep.jobs.runner import JobRunner
from imgkeep.jobs.webhooks import WebhookSender

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.bootstrap.nodes import Nodes
    from imgkeep.bootstrap.platform import Platform
    from imgkeep.config import Config
    from imgkeep.database import Database
    from imgkeep.images.inspect import Inspector
    from imgkeep.images.upload import Saver
    from imgkeep.jobs.link_queue import LinkQueue
    from imgkeep.origin import OriginClient


def make_job_runner(  # noqa: PLR0913 - all but two by keyword, in one place
    config: Config,
    platform: Platform,
    *,
    database: Database,
    inspector: Inspector,
    saver: Saver,
    messenger: OriginClient,
    count: Callable[[str], None],
    nodes: Nodes | None,
) -> JobRunner:
    """
    Return the job runner of a process.

    Args:
        config: The configuration of the services.
        platform: The edges of the machine.
        database: Holds the jobs.
        inspector: Tells what links are.
        saver: Saves a link.
        messenger: Sends webhooks.
        count: Counts an attempt by its outcome.
        nodes: The cluster that this process is a member of; `None`: the database is its own.
    """
    keys = config.security.signing_keys
    runner = JobRunner(
        jobs=database.jobs,
        links=_make_queue(platform, database, nodes),
        saver=saver,
        webhooks=WebhookSender(database.jobs, messenger, keys[0] if keys else None, platform.clock, random.random),
        identify=inspector.identify,
        public=inspector.public,
        clock=platform.clock,
        draw=random.random,
        draw_id=lambda: secrets.token_hex(16),
        timer=platform.timer,
        sleep=platform.sleep,
        count=count,
    )
    if nodes is not None:
        nodes.session.listen(job_notices.CHANNEL, runner.hear)
    return runner


def _make_queue(platform: Platform, database: Database, nodes: Nodes | None) -> LinkQueue:
    if nodes is None:
        return OwnQueue(database.jobs, platform.timer)
    # Alone, a process does without these.
    from imgkeep.cluster.nodes.membership import DEAD_AFTER_S  # noqa: PLC0415
    from imgkeep.database.job_reservations import JobReservations  # noqa: PLC0415

    member = nodes.membership
    reservations = JobReservations(database.engine, member.id, dead_after_s=DEAD_AFTER_S)
    return SharedQueue(
        reservations,
        is_joined=lambda: member.is_joined,
        silence_s=lambda: member.silence_s,
        dead_after_s=DEAD_AFTER_S,
        timer=platform.timer,
    )

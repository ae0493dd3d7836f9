"""Builds what keeps a remote store and this machine in step, on top of the services."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from imgkeep.replication.outbox_worker import OutboxWorker
from imgkeep.replication.record_settler import RecordSettler

if TYPE_CHECKING:
    from imgkeep.bootstrap.platform import Platform
    from imgkeep.bootstrap.services import Services
    from imgkeep.core.records import Key, Record


def make_outbox_worker(services: Services, platform: Platform) -> OutboxWorker | None:
    """Return the worker that uploads the outbox; `None`: the store has no fallback."""
    storage, remote = services.storage, services.storage.remote
    if remote is None or remote.fallback is None:
        return None
    changes = services.image_service.changes

    async def note_uploaded(record: Record) -> None:
        await changes.note_stored(record)

    async def note_dropped(key: Key) -> None:
        changes.forget(key)
        await changes.notify_peers(key)

    return OutboxWorker(
        tiered_store=remote.tiered_store,
        fallback=remote.fallback,
        outbox=storage.database.outbox,
        image_index=storage.database.image_index,
        blocked_digests=services.remover.blocked,
        uploaded=note_uploaded,
        dropped=note_dropped,
        draw=random.random,
        sleep=platform.sleep,
        count=services.metrics.outbox_uploads,
    )


def make_record_settler(services: Services) -> RecordSettler | None:
    """Return what reads records of a bucket again; `None`: the store is no bucket."""
    storage, remote = services.storage, services.storage.remote
    if remote is None:
        return None
    return RecordSettler(
        remote.bucket.unsettled,
        remote.tiered_store.read_again,
        storage.database.image_index,
        services.image_service.changes,
    )

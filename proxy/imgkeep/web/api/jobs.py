"""`/api/save-images` and `/api/jobs`: saves many links in one job, shows its progress, and cancels it."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, get_args

import msgspec
from aiohttp import web
from msgspec import UNSET

from imgkeep.core.errors import InvalidRequest, StorageError
from imgkeep.core.jobs import JobState
from imgkeep.jobs.job_json import describe_job
from imgkeep.jobs.runner import ITEMS_MAX
from imgkeep.web.api import schemas
from imgkeep.web.api.api_services import API, api_context, describe_images, json_response, read_query
from imgkeep.web.api.paging import make_cursor, read_cursor, read_limit
from imgkeep.web.request_body import BODIES, has_body
from imgkeep.web.request_state import ADMISSION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imgkeep.core.jobs import Job, JobResult
    from imgkeep.core.records import Key
    from imgkeep.images.record_json import ImageFacts

WAIT_MAX_S: Final = 300
"""Maximum time that a request with `wait` waits; the job goes on without it."""
EVENTS_INTERVAL_S: Final = 0.25
"""Minimum interval of events, however quickly the job saves links."""
HEARTBEAT_S: Final = 15
"""Interval of heartbeats: proxies close connections that are silent for a minute."""
CHECK_INTERVAL_S: Final = 1
"""Interval in which a waiting request checks whether its client or the server is about to go."""
LOOK_INTERVAL_S: Final = 5
"""Interval of looks into the database by a waiting request: a notice of another node may be lost."""

_ID: Final = re.compile(r"[0-9a-f]{32}")
_CURSOR: Final = re.compile(r"([0-9]{1,12})-([0-9a-f]{32})")
_STATES: Final[tuple[JobState, ...]] = get_args(JobState)
_NUMBER: Final = re.compile(r"[0-9]{1,5}")


class SaveImages(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON body of `POST /api/save-images`. A text that is no link fails alone."""

    urls: list[Any]
    wait: bool = False
    webhook: str | None = None


async def save_images(request: web.Request) -> web.Response:
    """Submit a job that saves many links, and wait for its end if the client wants that."""
    context = api_context(request)
    body = await request.app[BODIES].read_json(request, SaveImages)
    job = await context.jobs.submit(body.urls, webhook=body.webhook)
    if body.wait:
        job = await _wait(request, job)
        if job.finished_at is not None:
            return json_response(await _with_results(request, job, after=-1, limit=ITEMS_MAX))
    headers = {"Location": f"{request[ADMISSION].base}/api/jobs/{job.id}"}
    return json_response(schemas.Job(**describe_job(job)), status=202, headers=headers)


async def list_jobs(request: web.Request) -> web.Response:
    """List jobs, newest first, a page at a time, without results."""
    context = api_context(request)
    query = read_query(request, {"limit", "cursor", "state"})
    limit = read_limit(query.get("limit"))
    state = next((state for state in _STATES if state == query.get("state")), None)
    if state is None and "state" in query:
        raise InvalidRequest(f"state has to be one of {', '.join(_STATES)}")
    page = await context.jobs.page(limit=limit + 1, after=read_cursor(query.get("cursor"), _CURSOR), state=state)
    shown = page[:limit]
    following = make_cursor(shown[-1].created_at, shown[-1].id) if len(page) > limit else None
    return json_response(schemas.Jobs(jobs=[schemas.JobFacts(**describe_job(job)) for job in shown], next=following))


async def cancel_job(request: web.Request) -> web.Response:
    """End a job at once. Stored images stay, and so does a job that has ended already."""
    context = api_context(request)
    if has_body(request):
        raise InvalidRequest("takes no body")
    job = await _find(request)
    return json_response(schemas.Job(**describe_job(await context.jobs.cancel(job.id) or job)))


async def show_job(request: web.Request) -> web.Response:
    """Show the progress of a job, and the results of its links so far."""
    api_context(request)
    job = await _find(request)
    after, limit = _number(request, "after", -1), _number(request, "limit", ITEMS_MAX)
    return json_response(await _with_results(request, job, after=after, limit=min(limit, ITEMS_MAX)))


async def follow_job(request: web.Request) -> web.StreamResponse:
    """Send the progress of a job as Server-Sent Events (WHATWG HTML, 9.2): `progress` at each change, then `done`."""
    context = api_context(request)
    job = await _find(request)
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",  # nginx would hold events back
            "X-Content-Type-Options": "nosniff",
        }
    )
    await response.prepare(request)
    with context.jobs.watch(job.id) as changed:
        job = await context.jobs.find(job.id) or job
        while True:
            name = "progress" if job.finished_at is None else "done"
            data = msgspec.json.encode(schemas.JobFacts(**describe_job(job))).decode()
            await response.write(f"id: {job.saved + job.failed}\nevent: {name}\ndata: {data}\n\n".encode())
            if job.finished_at is not None:
                await response.write_eof()
                return response
            await asyncio.sleep(EVENTS_INTERVAL_S)
            following = await _wait_for_news(request, response, changed, job)
            if following is None:
                return response  # the client connects again, and another process answers
            job = following


async def _wait_for_news(
    request: web.Request, response: web.StreamResponse, changed: asyncio.Event, job: Job
) -> Job | None:
    """Wait until a job is another than this, and send heartbeats meanwhile; `None`: the server is about to end."""
    context, silent_s = request.app[API], 0
    while True:
        if await _wait_for_change(request, changed) or silent_s % LOOK_INTERVAL_S == 0:
            changed.clear()
            with suppress(StorageError):  # the database is away: the client waits on
                found = await context.jobs.find(job.id)
                if found is not None and found != job:
                    return found
        if context.health.ending:
            return None
        silent_s += CHECK_INTERVAL_S
        if silent_s >= HEARTBEAT_S:
            silent_s = 0
            await response.write(b":\n\n")


async def _wait(request: web.Request, job: Job) -> Job:
    context = request.app[API]
    waited_s = 0
    with context.jobs.watch(job.id) as changed:
        while waited_s < WAIT_MAX_S and not context.health.ending:
            if changed.is_set() or waited_s % LOOK_INTERVAL_S == 0:
                changed.clear()
                with suppress(StorageError):  # the database is away, and the job goes on
                    job = await context.jobs.find(job.id) or job
                if job.finished_at is not None:
                    break
            if not await _wait_for_change(request, changed):
                waited_s += CHECK_INTERVAL_S
    return job


async def _wait_for_change(request: web.Request, changed: asyncio.Event) -> bool:
    """Wait for a change, for one check interval; tell whether it came."""
    if request.transport is None:
        raise ConnectionResetError("the client has left")
    try:
        async with asyncio.timeout(CHECK_INTERVAL_S):
            await changed.wait()
    except TimeoutError:
        return False
    return True


async def _find(request: web.Request) -> Job:
    job_id = request.match_info["id"]
    job = await request.app[API].jobs.find(job_id) if _ID.fullmatch(job_id) else None
    if job is None:
        raise web.HTTPNotFound(text="there is no such job, or it ended more than a week ago")
    return job


async def _with_results(request: web.Request, job: Job, *, after: int, limit: int) -> schemas.JobWithResults:
    results = await request.app[API].jobs.results(job.id, after=after, limit=limit)
    records = [result.record for result in results if result.record is not None]
    images = {image.key: image for image in await describe_images(request, records)}
    return schemas.JobWithResults(**describe_job(job), results=[_result(result, images) for result in results])


def _result(result: JobResult, images: Mapping[Key, ImageFacts]) -> schemas.Result:
    failure = result.failure
    return schemas.Result(
        index=result.number,
        state=result.state,
        host=result.host or UNSET,
        key=UNSET if result.key is None else result.key,
        created=result.created if result.state == "saved" else UNSET,
        image=UNSET if result.record is None else images[result.record.key],
        error=UNSET if failure is None else schemas.LinkFailure(code=failure.code, detail=failure.detail),
    )


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not _NUMBER.fullmatch(text):
        raise InvalidRequest(f"{name} has to be a number")
    return int(text)

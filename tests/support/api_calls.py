"""Requests to the API of an imgkeep in this process."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from typing import TYPE_CHECKING, Any

from tests.support.waiting import until

if TYPE_CHECKING:
    from aiohttp import ClientResponse

    from tests.support.server import Imgkeep

REMOVED = (410, "removed")
"""Status and code of an image that was removed."""


async def post(imgkeep: Imgkeep, body: bytes) -> ClientResponse:
    headers = {"Content-Type": "application/json"}
    return await imgkeep.client.post("/api/save-image", data=BytesIO(body), headers=headers)


async def save(imgkeep: Imgkeep, body: object) -> tuple[int, dict[str, Any]]:
    """Save an image; return status and facts."""
    response = await post(imgkeep, json.dumps(body).encode())
    return response.status, await response.json()


async def saved(imgkeep: Imgkeep, url: str) -> dict[str, Any]:
    """Save the image of a link; return its facts."""
    status, facts = await save(imgkeep, {"url": url})
    assert status in {200, 201}
    return facts


def data_url(body: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(body).decode()}"


async def remove(imgkeep: Imgkeep, path: str = "", **query: str) -> int:
    """Remove an image; return the status."""
    response = await imgkeep.client.delete(f"/api/images{path}", params=query)
    return response.status


async def problem_code(response: ClientResponse) -> tuple[int, str]:
    """Return status and code of a problem."""
    return response.status, (await response.json())["code"]


async def show_job(imgkeep: Imgkeep, job: str, **query: str) -> dict[str, Any]:
    response = await imgkeep.client.get(f"/api/jobs/{job}", params=query)
    assert response.status == 200
    facts: dict[str, Any] = await response.json()
    return facts


async def job_done(imgkeep: Imgkeep, job: str) -> dict[str, Any]:
    """Wait until a job is done; return its facts."""

    async def is_done() -> bool:
        return bool((await show_job(imgkeep, job))["state"] == "done")

    await until(is_done)
    return await show_job(imgkeep, job)

"""Calls of the API of an imgkeep in this process."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiohttp import ClientResponse

    from tests.conftest import Imgkeep


async def code(response: ClientResponse) -> tuple[int, str]:
    """Return the status and the code of a problem."""
    return response.status, (await response.json())["code"]


async def save(imgkeep: Imgkeep, body: object) -> tuple[int, dict[str, Any]]:
    """Save an image; return the status and the JSON of the response."""
    response = await post(imgkeep, json.dumps(body).encode())
    return response.status, await response.json()


async def post(imgkeep: Imgkeep, body: bytes) -> ClientResponse:
    headers = {"Content-Type": "application/json"}
    return await imgkeep.client.post("/api/save-image", data=BytesIO(body), headers=headers)


def data_url(body: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(body).decode()}"

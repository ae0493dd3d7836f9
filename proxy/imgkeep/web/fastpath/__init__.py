"""The fast path: plain requests for images bypass aiohttp, on the same socket."""

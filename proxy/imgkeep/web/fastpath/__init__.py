"""Requests for images that are answered in front of aiohttp, on the same socket."""

"""Cloudinary: the `client` of a folder, over their HTTP API."""

from imgkeep.storage.cloudinary.client import CloudinaryClient

__all__ = ["CloudinaryClient"]

"""
The servers behind source URLs: one shared client, guarded where it connects.

Nothing of a visitor's request reaches an origin, and of an origin's answer only the bytes, once judged, go on.
"""

from imgkeep.origin.client import OriginClient
from imgkeep.origin.ssrf_guard import AddressGuard

__all__ = ["AddressGuard", "OriginClient"]

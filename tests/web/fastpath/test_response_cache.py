"""The response cache: bounded by its memory, the least recently used response evicted first."""

from __future__ import annotations

import tracemalloc

from imgkeep.images.cache_trust import CacheTrust
from imgkeep.storage.local.memory_cache import CacheEntry
from imgkeep.web.fastpath.request_head import RequestFields
from imgkeep.web.fastpath.response_cache import FRESHNESS_LIFETIME_S, TARGETS_MAX, CachedResponse, ResponseCache
from imgkeep.web.fastpath.response_variants import join_variant, may_vary
from imgkeep.web.fastpath.response_writer import encode_specific_fields
from imgkeep.web.image_headers import HIT_HEADERS


class FakeEntry(CacheEntry):
    """An entry that has its bytes."""

    __slots__ = ()

    def __init__(self) -> None:
        pass

    def read_now(self) -> bytes:
        return b"x"

    def load(self) -> None:
        return None


def response(key: str, *, fresh_until: float = FRESHNESS_LIFETIME_S) -> CachedResponse:
    fields = f'ETag: "{key}"\r\nContent-Location: /images/{key * 8}.png\r\n'.encode()
    media_type = b"Content-Type: image/png\r\n"
    return CachedResponse("/img", key, f'"{key}"', fields, media_type, 1, FakeEntry(), fresh_until, None)


def test_least_recently_used_response_is_evicted_first() -> None:
    cache = ResponseCache(3000)
    for n in range(3):
        cache.put(b"/%d" % n, response(f"{n}"))
    assert cache.find(b"/0", 0) is not None
    cache.put(b"/3", response("3"))
    assert [cache.find(b"/%d" % n, 0) is None for n in range(4)] == [False, True, False, False]
    assert cache.bytes <= 3000


def test_invalidation_removes_all_targets_of_a_key_and_no_others() -> None:
    cache = ResponseCache()
    for target, key in ((b"/a", "one"), (b"/b", "one"), (b"/c", "two")):
        cache.put(target, response(key))
    cache.invalidate("one")
    cache.invalidate("unknown")
    assert [cache.find(target, 0) is None for target in (b"/a", b"/b", b"/c")] == [True, True, False]
    cache.invalidate("two")
    assert (len(cache), cache.bytes) == (0, 0)


def test_replaced_response_is_counted_once() -> None:
    cache = ResponseCache()
    cache.put(b"/a", response("one"))
    before = cache.bytes
    cache.put(b"/a", response("two"))
    assert (len(cache), cache.bytes) == (1, before)
    cache.invalidate("one")
    assert cache.find(b"/a", 0) is not None


def test_response_leaves_at_the_end_of_its_freshness() -> None:
    cache = ResponseCache()
    cache.put(b"/a", response("one", fresh_until=10))
    assert cache.find(b"/a", 9.9) is not None
    assert cache.find(b"/a", 10) is None
    assert len(cache) == 0


def test_links_of_one_key_are_bounded_and_evict_no_others() -> None:
    cache = ResponseCache(2**30)
    cache.put(b"/other", response("two"))
    for number in range(TARGETS_MAX + 10):
        cache.put(b"/%d" % number, response("one"))
    assert len(cache) == TARGETS_MAX + 1
    assert [cache.find(target, 0) is None for target in (b"/9", b"/10", b"/other")] == [True, False, False]
    cache.invalidate("one")
    cache.invalidate("two")
    assert (len(cache), cache.bytes) == (0, 0)


def test_entry_has_only_the_fields_that_not_all_hits_have() -> None:
    headers = {**HIT_HEADERS, "ETag": '"a"', "Cache-Control": "public, max-age=5"}
    assert encode_specific_fields(headers) == b'ETag: "a"\r\n'


def test_memory_is_counted_as_it_is_taken() -> None:
    cache = ResponseCache(2**30)
    number = 5000
    tracemalloc.start()
    try:
        for n in range(number):
            cache.put(f"/img?src=https%3A%2F%2Fimages.example%2F{n:040d}.png".encode(), response(f"{n:064x}"))
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    # The handle that a store gives, some 250 bytes with its path, is counted too, and not made here.
    assert taken / number <= cache.bytes / number <= taken / number + 400


def test_suspended_cache_answers_nothing_and_keeps_its_responses() -> None:
    trust = CacheTrust(lambda: 0.0, until=10)
    cache = ResponseCache(trust=trust)
    cache.put(b"/a", response("one"))
    assert cache.find(b"/a", 9) is not None
    assert cache.find(b"/a", 10) is None, "the time that is read anyway ends the trust, without a task that notices"
    trust.until = 20
    assert cache.find(b"/a", 10) is not None
    trust.suspend()
    assert cache.find(b"/a", 10) is None


def test_cleared_cache_is_empty() -> None:
    cache = ResponseCache()
    cache.put(b"/a", response("one"))
    cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)
    cache.put(b"/a", response("one"))
    cache.invalidate("one")
    assert cache.find(b"/a", 0) is None


NEGOTIATED = b"/img?src=a&format=auto"
CLASSES = {
    b"avif,webp": RequestFields(b"Host: a\r\nAccept: image/avif,image/webp,*/*;q=0.8\r\n\r\n"),
    b"webp": RequestFields(b"Host: a\r\nAccept: image/avif;q=0\r\nAccept: image/webp\r\n\r\n"),
    b"": RequestFields(b"Host: a\r\n\r\n"),
}


def test_response_of_a_negotiated_picture_is_found_by_clients_of_its_class_alone() -> None:
    cache = ResponseCache()
    responses = {}
    for name, fields in CLASSES.items():
        assert fields.client_class == name
        assert cache.find(NEGOTIATED, 0, fields) is None
        responses[name] = response("one")
        cache.put(join_variant(NEGOTIATED, name), responses[name])
    for name, fields in CLASSES.items():
        assert cache.find(NEGOTIATED, 0, fields) is responses[name]
    assert cache.find(NEGOTIATED, 0) is None, "without fields the class is unknown"
    cache.invalidate("one")
    assert [cache.find(NEGOTIATED, 0, fields) for fields in CLASSES.values()] == [None] * 3
    assert (len(cache), cache.bytes) == (0, 0)


def test_cleared_cache_has_no_variants_either() -> None:
    cache = ResponseCache()
    cache.put(join_variant(NEGOTIATED, b""), response("one"))
    cache.clear()
    assert cache.find(NEGOTIATED, 0, CLASSES[b""]) is None
    cache.put(join_variant(NEGOTIATED, b""), response("one"))
    assert cache.find(NEGOTIATED, 0, CLASSES[b""]) is not None


def test_variant_is_evicted_like_any_other_response() -> None:
    cache = ResponseCache(3500)
    for n in range(40):
        cache.put(join_variant(b"/%d?format=auto" % n, b"webp"), response(f"{n}"))
    found = [n for n in range(40) if cache.find(b"/%d?format=auto" % n, 0, CLASSES[b"webp"]) is not None]
    assert found == list(range(40 - len(cache), 40))
    assert 0 < cache.bytes <= 3500


def test_target_without_a_format_depends_on_no_field() -> None:
    assert may_vary(NEGOTIATED)
    assert may_vary(b"/images/a.png?preset=thumb")
    assert not may_vary(b"/img?src=a&w=400")

"""
What Chromium shows of an image, and whether that is all of it.

A load event proves little: Chromium fires it for half a photograph. What its decoders say does: `ImageDecoder` decodes
each frame with `completeFramesOnly` and refuses one that ends early. Two kinds have no such decoder in a page:

- SVG is asked of the XML parser as well.
- ICO and CUR are drawn as they are and with other bytes behind them: a picture that is all there does not change. A PNG
  inside is asked of `ImageDecoder`.

A decoder may refuse a file that is not cut, but damaged, or of a kind that it does not know. Such a file is not *open*:
what is drawn does not change, whatever bytes follow.

The end mark is told apart (EOI, trailer, IEND): a file that lacks nothing else becomes complete when it is added, and
what is drawn does not change.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.support.browser import browsing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from playwright.async_api import Page

AT_ONCE: Final = 8
PATIENCE_S: Final = 60  # for one file; the longest animation takes a few seconds

PAGE: Final = """<!DOCTYPE html><meta charset="utf-8"><title>sweep</title><script>
const END = {"image/jpeg": [0xff, 0xd9], "image/gif": [0x3b],
  "image/png": [0, 0, 0, 0, 0x49, 0x45, 0x4e, 0x44, 0xae, 0x42, 0x60, 0x82]};
const followed = (bytes, tail) => {
  const longer = new Uint8Array(bytes.length + tail.length);
  longer.set(bytes); longer.set(tail, bytes.length);
  return longer;
};
async function load(url) {
  const image = new Image();
  const loaded = await new Promise(done => {
    image.onload = () => done(true); image.onerror = () => done(false); image.src = url;
  });
  return loaded && image.naturalWidth ? image : null;
}
async function drawn(bytes) {
  const url = URL.createObjectURL(new Blob([bytes]));
  try {
    const image = await load(url);
    if (!image) return null;
    try { await image.decode(); } catch { return null; }
    const scale = Math.min(1, Math.sqrt(4e6 / (image.naturalWidth * image.naturalHeight)));
    const canvas = new OffscreenCanvas(
      Math.max(1, image.naturalWidth * scale), Math.max(1, image.naturalHeight * scale));
    const context = canvas.getContext("2d", {willReadFrequently: true});
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
    return [...new Uint8Array(await crypto.subtle.digest("SHA-256", pixels))].join() + canvas.width;
  } finally { URL.revokeObjectURL(url); }
}
async function frames(bytes, type) {
  if (!await ImageDecoder.isTypeSupported(type)) return null;
  if (bytes.length === 0) return false;
  const decoder = new ImageDecoder({data: bytes, type});
  try {
    await decoder.tracks.ready;
    await decoder.completed;
    const {selectedTrack} = decoder.tracks;
    for (let at = 0; at < selectedTrack.frameCount; at++) {
      const {image, complete} = await decoder.decode({frameIndex: at, completeFramesOnly: true});
      image.close();
      if (!complete) return false;
    }
    return selectedTrack.frameCount > 0;
  } catch { return false; } finally { decoder.close(); }
}
async function isOpen(bytes) {
  const is = await drawn(bytes);
  for (const fill of [0, 0x55, 0xaa])
    if (is !== await drawn(followed(bytes, new Uint8Array(600000).fill(fill)))) return true;
  return false;
}
async function icons(bytes) {
  const view = new DataView(bytes.buffer);
  for (let line = 6, left = view.getUint16(4, true); left > 0 && line + 16 <= bytes.length; left--, line += 16) {
    const at = view.getUint32(line + 12, true);
    if (bytes[at] === 0x89 && bytes[at + 1] === 0x50
      && await frames(bytes.slice(at), "image/png") === false) return false;
  }
  return await drawn(bytes) !== null && !await isOpen(bytes);
}
async function wellFormed(path) {
  const request = new XMLHttpRequest();
  request.open("GET", path);
  request.overrideMimeType("image/svg+xml");
  request.responseType = "document";
  await new Promise(done => { request.onloadend = done; request.send(); });
  return request.responseXML !== null && request.responseXML.querySelector("parsererror") === null;
}
async function judge(path, type, doubted) {
  const image = await load(path);
  if (!image) return {shown: false, whole: false, ended: false, open: false, width: 0, height: 0};
  const size = {shown: true, width: image.naturalWidth, height: image.naturalHeight};
  if (type === "image/svg+xml") {
    const whole = await wellFormed(path);
    return {...size, whole, ended: false, open: !whole};
  }
  const bytes = new Uint8Array(await (await fetch(path)).arrayBuffer());
  const whole = type === "image/x-icon" ? await icons(bytes) : await frames(bytes, type);
  const open = !whole && await isOpen(bytes);
  let ended = false;
  if (type in END && (doubted || !whole)) {
    const longer = followed(bytes, END[type]);
    ended = await frames(longer, type) === true && await drawn(bytes) === await drawn(longer);
  }
  return {...size, whole: whole === true, ended, open};
}
</script>"""

# As Chromium tells them, whatever the server says; but for SVG, which it shows by its declared type alone.
_TYPES: Final = (
    (b"\x89PNG\r\n\x1a\n", 0, "image/png"),
    (b"\xff\xd8\xff", 0, "image/jpeg"),
    (b"GIF8", 0, "image/gif"),
    (b"WEBPVP", 8, "image/webp"),
    (b"\0\0\1\0", 0, "image/x-icon"),
    (b"\0\0\2\0", 0, "image/x-icon"),
    (b"BM", 0, "image/bmp"),
    (b"ftyp", 4, "image/avif"),
    (b"\xff\x0a", 0, "image/jxl"),
    (b"\0\0\0\x0cJXL ", 0, "image/jxl"),
    (b"II*\0", 0, "image/tiff"),
    (b"MM\0*", 0, "image/tiff"),
    (b"II+\0", 0, "image/tiff"),
    (b"MM\0+", 0, "image/tiff"),
)
_SVG_MARKS: Final = tuple("<svg".encode(coding) for coding in ("utf-8", "utf-16-le", "utf-16-be"))
_SVG_PREFIXED: Final = b":svg"
_MARKUP_BYTES: Final = 65_536
_OPENINGS: Final = (b"<", b"\0<", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Shown:
    """
    What Chromium shows of a file.

    Attributes:
        shown: Whether `new Image()` loads and has a size.
        whole: Whether its decoders say that every frame is complete.
        ended: Whether all is complete and nothing changes when an end mark is added. Looked for where it is doubted.
        open: Whether it is not whole, and more bytes change what is drawn.
    """

    shown: bool
    whole: bool
    ended: bool
    open: bool
    width: int
    height: int


def type_of(body: bytes) -> str | None:
    """Return the type for which a browser, or another reader, would take these bytes; None: for no image."""
    for magic, at, type_ in _TYPES:
        if body.startswith(magic, at):
            return type_
    head = body[:_MARKUP_BYTES]
    if head.lstrip().startswith(_OPENINGS) and any(mark in head for mark in (*_SVG_MARKS, _SVG_PREFIXED)):
        return "image/svg+xml"
    return None


class Viewer:
    """A page that judges files of its own origin, several at once."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def judge(self, path: str, type_: str, *, doubted: bool) -> Shown:
        """Say what Chromium shows of the file at `path`; the end mark of what is whole is looked for if `doubted`."""
        async with self._turns, asyncio.timeout(PATIENCE_S):
            return Shown(**await self._page.evaluate("asked => judge(...asked)", [path, type_, doubted]))

    async def judge_each(self, files: Sequence[tuple[str, str, bool]]) -> list[Shown]:
        """Say it of each path and type."""
        return await asyncio.gather(*(self.judge(path, type_, doubted=doubted) for path, type_, doubted in files))


@asynccontextmanager
async def viewing(origin: str) -> AsyncGenerator[Viewer]:
    """Open `origin`, which must serve `PAGE`, in Chromium until the end of the block."""
    async with browsing() as browser:
        page = await browser.new_page()
        await page.goto(origin)
        yield Viewer(page)

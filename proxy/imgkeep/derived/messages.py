"""
The messages between a process that serves and its derive processes.

A job comes with two open files: the original to read, and an empty file for the picture. So a derive process opens no
file of the store, and has neither a name nor a secret of it.

Both sides send frames over a stream of a Unix socket: four bytes with the length of a message, then the message. A
derive process first sends `Ready` or `Unusable`, and then one answer for each job. The descriptors of a job's files
come with the first byte of its frame.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from imgkeep.core.derived.options import SIDE_MAX

LENGTH_BYTES: Final = 4
"""Size of the number before each message, most significant byte first."""
MESSAGE_BYTES_MAX: Final = 65_536
"""Maximum size of a message; the largest ones have a ThumbHash or a sentence."""
DETAIL_CHARS_MAX: Final = 500
"""Maximum length of the reason of a refusal, of which the server remembers thousands."""
PICTURE_BYTES_MAX: Final = 536_870_912
"""Maximum size of a file that a derive process writes: twice the pixels of the largest picture."""


class ProcessLimits(Struct, frozen=True, kw_only=True):
    """
    The limits of a derive process, as JSON on its command line.

    Attributes:
        memory_bytes_max: Maximum size of its address space.
        cpu_s: Processor time that one job may take.
        niceness: Its priority, as for `nice`.
        idle: Whether it runs only while the machine has no other work.
    """

    memory_bytes_max: int
    cpu_s: int
    niceness: int = 10
    idle: bool = False


class Ready(Struct, tag="ready", frozen=True, kw_only=True):
    """
    The first message of a derive process.

    Attributes:
        version: That of libvips.
        reads: Names of the formats in `core.records.Format` that it can read.
        writes: Names of those that it can write.
    """

    version: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


class Unusable(Struct, tag="unusable", frozen=True, kw_only=True):
    """The only message of a derive process that cannot work: pyvips or libvips is missing. It ends then."""

    detail: str


class DeriveJob(Struct, tag="derive", frozen=True, kw_only=True):
    """
    The job to make a derived picture.

    Attributes:
        stem: Its options, as `core.derived.options.stem_of` writes them.
        format: The name of its format in `core.records.Format`.
        original_format: That of the original.
        pixels_max: Maximum number of pixels of the original, all frames included, by its header.
        frames_max: Maximum number of frames.
        side_max: Maximum length of a side of the picture; it is made smaller to fit.
        rasterise_svg: Whether an SVG may be drawn.
        smaller_than: Size that the picture has to stay below, if its sides are those of the original; 0: any size.
        timeout_s: Time after which the process is killed; it gives up before, if it can.
    """

    stem: str
    format: str
    original_format: str
    pixels_max: int
    frames_max: int
    side_max: int = SIDE_MAX
    rasterise_svg: bool = False
    smaller_than: int = 0
    timeout_s: float = 20


class FactsJob(Struct, tag="facts", frozen=True, kw_only=True):
    """The job to find the facts of a picture. Attributes as for `DeriveJob`."""

    original_format: str
    pixels_max: int
    frames_max: int
    rasterise_svg: bool = False
    timeout_s: float = 20


class Derived(Struct, tag="derived", frozen=True, kw_only=True):
    """A derived picture, whole in the file for it."""

    size: int
    width: int
    height: int
    frames: int = 1


class NotSmaller(Struct, tag="not_smaller", frozen=True):
    """
    The picture has no use in this format: it would have had as many bytes as `smaller_than` or more, at the size of the
    original, or lacked frames of it.
    """


class Facts(Struct, tag="facts", frozen=True, kw_only=True):
    """The facts of a picture, as in `core.picture_facts.PictureFacts`."""

    width: int
    height: int
    frames: int
    has_alpha: bool
    orientation: int
    colour: str
    thumbhash: str


class Refused(Struct, tag="refused", frozen=True, kw_only=True):
    """
    The picture cannot be made, now or later.

    Attributes:
        reason: `unreadable`, `too_large`, `too_slow`, `unsupported`, `no_such_page`.
        detail: What happened and what to do, for people.
    """

    reason: str
    detail: Annotated[str, Meta(max_length=DETAIL_CHARS_MAX)]


Job: TypeAlias = DeriveJob | FactsJob
Answer: TypeAlias = Derived | NotSmaller | Facts | Refused
Greeting: TypeAlias = Ready | Unusable
"""The first message of a derive process."""

_ENCODER: Final = msgspec.msgpack.Encoder()
_JOBS: Final[msgspec.msgpack.Decoder[Job]] = msgspec.msgpack.Decoder(Job)
_ANSWERS: Final[msgspec.msgpack.Decoder[Answer]] = msgspec.msgpack.Decoder(Answer)
_GREETINGS: Final[msgspec.msgpack.Decoder[Greeting]] = msgspec.msgpack.Decoder(Greeting)


def encode(message: Job | Answer | Greeting) -> bytes:
    """Return the frame of a message."""
    body = _ENCODER.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def decode_job(body: bytes) -> Job:
    """Return the job in a frame, without its length. Raises: msgspec.DecodeError."""
    return _JOBS.decode(body)


def decode_answer(body: bytes) -> Answer:
    """Return the answer in a frame, without its length. Raises: msgspec.DecodeError."""
    return _ANSWERS.decode(body)


def decode_greeting(body: bytes) -> Greeting:
    """Return the first message of a process, without its length. Raises: msgspec.DecodeError."""
    return _GREETINGS.decode(body)

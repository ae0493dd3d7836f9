"""
The messages between a process that serves and its derive processes.

A job comes with two open files: the original to read, and an empty file for the picture. So a derive process opens no
file of the store, and has neither a name nor a secret of it.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct


class DeriveJob(Struct, tag="derive", frozen=True, kw_only=True):
    """
    The job to make a derived picture.

    Attributes:
        stem: Its options, as `core.derived.options.stem_of` writes them.
        format: The name of its format in `core.records.Format`.
        original_format: That of the original.
        pixels_max: Maximum number of pixels of the original, all frames included, by its header.
        frames_max: Maximum number of frames.
        rasterise_svg: Whether an SVG may be drawn.
        smaller_than: Size that the picture has to stay below, if its sides are those of the original; 0: any size.
        timeout_s: Time after which the process is killed; it gives up before, if it can.
    """

    stem: str
    format: str
    original_format: str
    pixels_max: int
    frames_max: int
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
    """The picture would have had as many bytes as `smaller_than` or more, at the size of the original."""


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
        reason: `unreadable`, `too_large`, `unsupported`, `no_such_page`.
        detail: What happened and what to do, for people.
    """

    reason: str
    detail: str


Job: TypeAlias = DeriveJob | FactsJob
Answer: TypeAlias = Derived | NotSmaller | Facts | Refused

"""The arguments of the commands that make derived pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgkeep.cli.common_arguments import INTERRUPTED, USAGE, add_command, add_json, complete_names_of, read_time

if TYPE_CHECKING:
    from imgkeep.cli.common_arguments import Commands


def add_pictures(commands: Commands) -> None:
    """Add `derive` and `warm`."""
    deriving = add_command(
        commands,
        "derive",
        "write a picture of another size or format into a file",
        "imgkeep derive 'https://example.com/picture.png' --options 'w=400&format=webp' -o picture.webp",
        statuses=((0, "written"), (1, "the image is not stored, or the picture cannot be made"), USAGE, *INTERRUPTED),
        store=True,
    )
    deriving.add_argument("name", metavar="KEY|URL", help="the image, which has to be stored")
    output = deriving.add_argument("-o", "--output", metavar="FILE", required=True, help="- is standard output")
    complete_names_of(output, "file")
    warming = add_command(
        commands,
        "warm",
        "make pictures of stored images before a client asks for them",
        "imgkeep warm --preset thumb --since 2026-11-22",
        statuses=((0, "all are made"), (1, "some are not"), USAGE, *INTERRUPTED),
        store=True,
    )
    warming.add_argument("--since", type=read_time, metavar="TIME", help="only of images stored then or later")
    for command in (deriving, warming):
        command.add_argument("--preset", metavar="NAME", help="of [derive.presets]")
        command.add_argument("--options", metavar="OPTIONS", help="as in a URL, also beside a preset")
        command.add_argument(
            "--accept",
            metavar="TYPES",
            default="image/avif,image/webp",
            help="what a browser takes, for format=auto (default: %(default)s)",
        )
        add_json(command)

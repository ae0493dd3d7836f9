"""`forget`: drops the outbox of a node that does not come back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from imgkeep.bootstrap.storage import open_storage
from imgkeep.cli.printing import print_json, printable
from imgkeep.clock import read_clock
from imgkeep.cluster.nodes.upkeep import forget_node
from imgkeep.config import ConfigError

if TYPE_CHECKING:
    from imgkeep.cli.invocation import Invocation


async def run(invocation: Invocation) -> int:
    arguments, config = invocation.arguments, invocation.config
    if not config.database.is_shared:
        raise ConfigError("database.url is a file of this machine, so there is no other node to forget")
    async with open_storage(config, clock=read_clock) as storage:
        images = await forget_node(storage.database, arguments.node)
    if arguments.json:
        print_json(sys.stdout, {"node": arguments.node, "images": images})
    else:
        sys.stdout.write(f"{images} images no longer wait at {printable(arguments.node)}\n")
    return 0

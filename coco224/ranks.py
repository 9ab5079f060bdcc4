"""What a launcher says of this process in its environment. A variable that is no number is as good as none."""

import os


def is_first_here() -> bool:
    """Whether this is the only process of its program on this machine, or the first of them."""
    rank = os.environ.get("LOCAL_RANK", "")
    return rank == "0" or not rank.isdecimal()


def ranks_here(unknown: int = 1) -> int:
    """How many processes of the program this machine has; `unknown` if no launcher says it."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(count) if count.isdecimal() else unknown

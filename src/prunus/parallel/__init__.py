"""Several processes that work on one thing: who is who, what they tell each other, who does what.

Processes come from `torchrun` or `accelerate launch`, and their group from `torch.distributed`. Alone, all of this does nothing.
"""

from prunus.parallel.exchange import (
    add_up,
    after_first,
    agreeing,
    barrier,
    by_first,
    everyones,
    from_process,
    in_first,
    of_first,
    summed,
    told_by_first,
)
from prunus.parallel.processes import (
    alone,
    is_first,
    is_ours,
    join_group,
    leave,
    process,
    processes,
    refuse_sharding_launcher,
    several,
)
from prunus.parallel.sharded import (
    from_rows_here,
    group_of,
    has_shards,
    is_sharded,
    local,
    reshard,
    rows_here,
    to_rows_here,
    type_of,
    whole,
)
from prunus.parallel.sharing import shared_out

__all__ = [
    "add_up", "after_first", "agreeing", "alone", "barrier", "by_first", "everyones", "from_process", "from_rows_here", "group_of", "has_shards", "in_first",
    "is_first", "is_ours", "is_sharded", "join_group", "leave", "local", "of_first", "process", "processes", "refuse_sharding_launcher", "reshard", "rows_here",
    "several",
    "shared_out", "summed", "to_rows_here", "told_by_first", "type_of", "whole",
]  # fmt: skip

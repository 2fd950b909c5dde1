"""One of several shares of a plan: whole batches, under the setup that is chosen for all of them.

What is shared out are batches, for an image may depend on the others of its batch: each shard draws the pixels that one
run of everything would. Every so many of them, so that a list whose later images are larger weighs the same everywhere.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from sdcli import schema
from sdcli.plan.plan import Plan, Seconds, WholeList
from sdcli.request.request import Shard


def share(plan: Plan, shard: Shard, *, more: bool = False) -> Plan:
    """Of a plan for all jobs, what this shard draws. `more`: further jobs follow, one by one."""
    batches = tuple(batch for number, batch in enumerate(plan.batches) if shard.takes(number))
    own = {index for batch in batches for index in batch}
    jobs = tuple(job for job in plan.jobs if job.index in own)
    part = replace(plan, jobs=jobs, batches=batches, whole=None if more else _whole(plan))
    return replace(part, seconds=_seconds(plan, part))


def _whole(plan: Plan) -> WholeList:
    digest = hashlib.sha256()
    for job in plan.jobs:
        digest.update(json.dumps(schema.to_json(job), sort_keys=True).encode())
    return WholeList(images=len(plan.jobs), sha256=digest.hexdigest())


def _seconds(plan: Plan, part: Plan) -> Seconds | None:
    if plan.seconds is None or not plan.jobs:
        return plan.seconds
    calls = [sum(job.all_calls for job in one.jobs) for one in (part, plan)]
    drawing = (plan.seconds.total - plan.seconds.load) * calls[0] / calls[1]
    return replace(plan.seconds, total=plan.seconds.load + drawing)

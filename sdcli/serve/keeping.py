"""What nobody drew any more is kept as a run that has not begun: `sdcli runs` lists it, `sdcli resume` draws it."""

from __future__ import annotations

from collections.abc import Iterator

from sdcli.errors import SdcliError, Terminated
from sdcli.events import Event, Planned
from sdcli.machine.environment import environment
from sdcli.plan.plan import Plan
from sdcli.record.store import store
from sdcli.serve.ticket import Ticket


def kept(ticket: Ticket) -> bool:
    """Whether its record is on disk now."""
    try:
        for _ in store(_only_planned(ticket.plan), ticket.destination, environment=environment(ticket.plan.hardware)):
            pass
    except Terminated:
        return True
    except SdcliError:
        return False
    return False


def _only_planned(plan: Plan) -> Iterator[Event]:
    yield Planned(plan=plan)
    raise Terminated("the server was shut down before it was drawn")

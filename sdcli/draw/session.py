"""A model in place under one setup: what outlives a run."""

from __future__ import annotations

from sdcli.draw.meter import Meter
from sdcli.draw.place import Placed
from sdcli.draw.prompts import Prompts
from sdcli.models.model import Model
from sdcli.plan.plan import Plan, Setup


class Session:
    """Components, encoded prompts and the device's meter. Whatever `change`s the setup gives all memory back first."""

    def __init__(self, model: Model, setup: Setup) -> None:
        self.model = model
        self.prompts = Prompts(model, setup.adapters)
        self.placed = Placed(model, setup)
        self.meter = Meter(self.placed.device)

    @property
    def setup(self) -> Setup:
        return self.placed.setup

    def serves(self, plan: Plan) -> bool:
        """Whether this plan can be drawn with what is loaded."""
        return self.model == plan.model and self.setup == plan.setup

    def change(self, setup: Setup) -> None:
        self.placed = Placed(self.model, setup)
        self.meter = Meter(self.placed.device)

    def close(self) -> None:
        """Gives all memory back; what was drawn has left as events."""
        self.prompts.keep(())
        self.placed.drop_all()

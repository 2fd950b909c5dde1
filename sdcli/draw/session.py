"""A model loaded under one setup: what outlives a run."""

from __future__ import annotations

from sdcli.draw.images import Images
from sdcli.draw.meter import Meter
from sdcli.draw.place import Components
from sdcli.draw.prompts import Prompts
from sdcli.draw.reference import References
from sdcli.models.model import Model
from sdcli.plan.plan import Plan, Setup
from sdcli.plan.stages import Stage


class Session:
    """Components, encoded prompts and images, and the device's meter. Free all memory before you `change` the setup."""

    def __init__(self, model: Model, setup: Setup) -> None:
        self.model = model
        self.prompts = Prompts(model, setup.adapters)
        self.of_refiner = self.prompts.of_refiner()
        self.images = Images()
        self.references = References(model)
        self.components = Components(model, setup)
        self.meter = Meter(self.components.device)

    @property
    def setup(self) -> Setup:
        return self.components.setup

    @property
    def every_prompt(self) -> tuple[Prompts, ...]:
        return (self.prompts,) if self.of_refiner is None else (self.prompts, self.of_refiner)

    def prompts_of(self, stage: Stage) -> Prompts:
        return self.of_refiner if self.of_refiner is not None and stage.refines else self.prompts

    def serves(self, plan: Plan) -> bool:
        """Whether what is loaded can draw this plan."""
        return self.model == plan.model and self.setup == plan.setup

    def change(self, setup: Setup) -> None:
        self.images.keep(())  # they were encoded under the setup before
        self.components = Components(self.model, setup)
        self.meter = Meter(self.components.device)

    def close(self) -> None:
        """Frees all memory; what was drawn has left as events."""
        for prompts in self.every_prompt:
            prompts.keep(())
        self.images.keep(())
        self.references.keep(())
        self.components.drop_all()

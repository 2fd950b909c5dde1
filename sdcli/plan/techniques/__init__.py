"""Memory techniques, one file per slot. Their names are public: `--pin slot=choice`."""

from __future__ import annotations

from sdcli.plan.techniques import attention, dtype, execution, guidance, placement, storage, vae, vae_dtype
from sdcli.plan.techniques.technique import Technique

TECHNIQUES: tuple[Technique, ...] = (
    dtype.TECHNIQUE,
    storage.TECHNIQUE,
    placement.TECHNIQUE,
    attention.TECHNIQUE,
    guidance.TECHNIQUE,
    vae.TECHNIQUE,
    vae_dtype.TECHNIQUE,
    execution.TECHNIQUE,
)

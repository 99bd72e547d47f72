"""What training minimises: losses by name, with parameters that follow from their signatures.

    losses.named("info_nce").build(model, positives=2, temperature=0.02)

Names, parameters and their documentation are there without torch; only `build` imports it. The
formulas are functions of embeddings and cosines in the modules beside this one.
"""

from __future__ import annotations

import importlib

from .registry import Loss, Wrapper, available, named, wrapper, wrappers
from .settings import Setting

__all__ = ["Loss", "Setting", "Wrapper", "available", "named", "wrapper", "wrappers"]

for _module in ("catalogue", "around"):
    importlib.import_module(f".{_module}", __name__)  # registers what it defines

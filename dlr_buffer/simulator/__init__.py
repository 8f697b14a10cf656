"""A Smartswitch stand-in on loopback: it speaks the seed's protocol strictly and misbehaves on request.

`Simulator` (`server`) listens, `SimulatorSettings` (`settings`) says how to behave, `Record` (`record`) tells
what came; `behaviour` decides, `protocol` reads and writes the seed's format, `answers` are what a script may
answer, and `command` is `dlr-buffer simulate`. Nothing of the daemon is known here, so that a fault of the
daemon's own wire code cannot hide itself.

The names below are loaded when first used: the command line then builds its parser without loading the
server.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlr_buffer.simulator.answers import Answer, Drop, Ending, Hang, Raw, Scripted
    from dlr_buffer.simulator.protocol import Receipt, mask_target
    from dlr_buffer.simulator.record import Record, Sighting
    from dlr_buffer.simulator.server import Exchange, Request, Simulator
    from dlr_buffer.simulator.settings import FaultKind, Outage, OutageKind, SimulatorSettings

__all__ = [
    "Answer",
    "Drop",
    "Ending",
    "Exchange",
    "FaultKind",
    "Hang",
    "Outage",
    "OutageKind",
    "Raw",
    "Receipt",
    "Record",
    "Request",
    "Scripted",
    "Sighting",
    "Simulator",
    "SimulatorSettings",
    "mask_target",
]

_HOMES = {
    "answers": ("Answer", "Drop", "Ending", "Hang", "Raw", "Scripted"),
    "protocol": ("Receipt", "mask_target"),
    "record": ("Record", "Sighting"),
    "server": ("Exchange", "Request", "Simulator"),
    "settings": ("FaultKind", "Outage", "OutageKind", "SimulatorSettings"),
}


def __getattr__(name: str) -> object:
    """Load a public name from the module that defines it (PEP 562)."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

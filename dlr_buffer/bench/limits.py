"""What the figures of one machine mean: sentences that say what limits it, and what is not as durable as it looks.

Pure: the figures come from elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlr_buffer.storage.file_systems import IN_MEMORY, ON_A_NETWORK, FileSystem

_WITHOUT_BARRIERS = frozenset({"nobarrier", "barrier=0", "barrier=none"})
_TOO_QUICK_S = 0.000_05
"""Quicker than flash can be written: only a cache answers so."""
_SLOW_S = 0.002
_BUSY = 0.9
"""The part of a core from which on the processor is what limits."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement. Rates are a second, times in seconds, None where there is none."""

    name: str
    rate: float
    median_s: float | None = None
    p99_s: float | None = None
    cores: float | None = None
    """How much of one core the daemon took meanwhile."""


def limits(  # noqa: PLR0913 - the place and the figures that decide, all by name
    where: FileSystem,
    *,
    sync: Figure,
    singles: Figure,
    bulk: Figure,
    drain: Figure,
    preloaded: str = "",
) -> list[str]:
    """Say what limits this machine, the gravest first; ``preloaded`` is LD_PRELOAD of the environment.

    ``sync`` needs its median, ``singles`` and ``drain`` need ``cores``.
    """
    sync_s = sync.median_s or 0.0
    sentences = _durability(where, sync_s, preloaded)
    took = f"A sync takes {_ms(sync_s)}"
    if sync_s >= _SLOW_S:
        sentences.append(
            f"{took}: this disk has no cache that survives a power cut. An app that registers one message at a time "
            f"over one connection gets no more than {1 / sync_s:,.0f} a second; many connections share a sync, "
            "and bulk requests hardly notice it. A disk with power-loss protection mends it."
        )
    sentences.append(
        f"Registering one at a time keeps the daemon busy for {_part(singles)} of a core"
        + (
            ": the processor limits it."
            if _busy(singles)
            else f"; the rest of the time it waits for the disk ({took[0].lower()}{took[1:]}) and for the apps."
        )
        + f" In bulk a message takes {singles.rate / bulk.rate:.0%} of that time."
    )
    sentences.append(
        f"Draining keeps it busy for {_part(drain)} of a core"
        + (
            ": the processor limits it."
            if _busy(drain)
            else "; the rest of the time it waits for the stand-in, which runs beside it."
        )
        + " In life, Smartswitch's answers and its `concurrency` limit it first."
    )
    return sentences


def _part(figure: Figure) -> str:
    return f"{figure.cores:.0%}"


def _busy(figure: Figure) -> bool:
    return figure.cores is not None and figure.cores >= _BUSY


def _durability(where: FileSystem, sync_s: float, preloaded: str) -> list[str]:
    if "eatmydata" in preloaded:
        return ["libeatmydata is preloaded: nothing is synced, and a power cut loses what was acknowledged."]
    if where.kind in IN_MEMORY:
        in_memory = (
            f"This folder is in memory ({where.kind}): what is acknowledged here is gone after a power cut or a"
            " reboot. Measure the disk that the queue lies on with --folder."
        )
        return [in_memory]
    sentences: list[str] = []
    if where.kind in ON_A_NETWORK:
        sentences.append(
            f"This folder is on a network ({where.kind}): SQLite's log needs the memory and the locks of one host. "
            "Put the queue on a local disk."
        )
    if weak := sorted(_WITHOUT_BARRIERS.intersection(where.options)):
        sentences.append(
            f"{where.mounted_at} is mounted with {weak[0]}: a sync does not reach the disk, and a power cut loses what "
            "was acknowledged, unless the disk's cache has a battery. Mount it without."
        )
    elif sync_s < _TOO_QUICK_S:
        sentences.append(
            f"A sync takes {_ms(sync_s)}, quicker than a disk can be: either its cache survives a power cut (a "
            "controller with a battery, an SSD for servers), or syncs go nowhere (a virtual disk with cache=unsafe, a "
            "container on such a host). Ask whoever runs the machine."
        )
    return sentences


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2g} ms"

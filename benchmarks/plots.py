"""Draws how cost grows with the backlog: rate, latency, memory and file size, one plot each, for docs/performance.md.

The only module that needs matplotlib. The same figures give the same files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "performance"
_PLOTS = {
    "rate": ("registrations a second", {"single": "singly, 16 connections", "bulk": "1,000 a request"}),
    "latency": (
        "p99, milliseconds",
        {"p99": "a registration", "claim": "claiming a batch of 100", "status": "GET /v1/status"},
    ),
    "memory": ("resident MiB", {"idle memory": "idle", "memory": "the most under load"}),
}


def draw(figures: Mapping[int, Mapping[str, float]], bytes_each: Mapping[int, float]) -> None:
    """Draw the plots; ``figures`` by waiting messages and name, ``bytes_each`` a waiting message."""
    for name, (unit, lines) in _PLOTS.items():
        _plot(
            name,
            unit,
            {label: {size: each[key] for size, each in figures.items()} for key, label in lines.items()},
        )
    _plot("size", "bytes a waiting message", {"file, all indexes included": dict(bytes_each)})


def _plot(name: str, unit: str, lines: Mapping[str, Mapping[int, float]]) -> None:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.hashsalt": "dlr-buffer", "svg.fonttype": "none", "font.size": 9})
    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for label, points in lines.items():
        axes.plot(list(points), list(points.values()), marker="o", label=label)
    axes.set_xscale("log")
    if name == "rate":
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("messages that wait")
    axes.set_ylabel(unit)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(frameon=False)
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})

"""``python -m tests.crash --kills N --seed S``: the crash campaign at any length, with the figures at the end."""

from __future__ import annotations

import argparse
import os
import platform
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.crash.rounds import Campaign, Outcome


def table(outcome: Outcome) -> list[str]:
    """The figures of a campaign, a line each."""
    figures = outcome.figures
    starts = sorted(outcome.start_s) or [0.0]
    rows: list[tuple[str, object]] = [
        ("commit", commit()),
        ("seed", outcome.seed),
        ("kills", f"{outcome.total}, of {len(outcome.hit)} kinds"),
        *(
            (f"  {death}", f"{count}" + _missed(outcome, death))
            for death, count in sorted(outcome.kills.items())
        ),
        ("registrations answered", figures.registrations),
        ("reports answered", figures.reports),
        ("requests of clients without an answer", figures.unanswered),
        ("requests seen upstream", figures.requests),
        ("receipts in them", figures.receipts),
        ("  of these sent before", figures.resends),
        ("  of these acted on before (duplicates)", figures.duplicates),
        ("  most that can be justified", figures.bound),
        ("receipts said ok to, not settled at a kill", figures.in_flight_at_kills),
        ("receipts acted on, the answer lost on purpose", figures.answers_lost),
        ("dead letters seen on the disk at kills", figures.dead),
        *(
            (f"admins' answered actions: {action}", count)
            for action, count in sorted(figures.actions.items())
        ),
        ("messages named", figures.named),
        (
            "  exempt from some checks (a deletion crossed)",
            f"{figures.exempt} ({figures.exempt / max(1, figures.named):.1%})",
        ),
        ("messages gone by right and forgotten", figures.forgotten),
        ("messages known at once, at most", figures.most_known),
        ("times that all had to come to its end", outcome.rests),
        ("start until ready, median", f"{statistics.median(starts):.2f} s"),
        ("start until ready, longest", f"{starts[-1]:.2f} s"),
        ("log (WAL) at a kill, largest", f"{max(outcome.wal_bytes, default=0) / 1024:.0f} KiB"),
        ("database, largest", f"{outcome.database_bytes / 1024:.0f} KiB"),
        ("whole campaign", f"{outcome.seconds:.0f} s"),
        (
            "machine",
            f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}",
        ),
        ("violations", len(outcome.violations)),
    ]
    return [f"{name:46} {value}" for name, value in rows]


def commit() -> str:
    """What is tested: the commit, and whether the work tree differs from it."""
    git = ["git", "-C", str(Path(__file__).parents[2])]
    shown = subprocess.run(
        [*git, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return shown.stdout.strip() or "unknown"


def _missed(outcome: Outcome, death: str) -> str:
    missed = outcome.missed[death]
    return f" ({missed} killed elsewhere: the point was not come to)" if missed else ""


def main() -> int:
    """Run a campaign; returns 1 and keeps the folder if anything was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=25, help="how often to kill (default: 25)")
    parser.add_argument("--seed", type=int, default=None, help="repeat a campaign, as far as time lets it")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else secrets.randbelow(1_000_000)
    folder = Path(tempfile.mkdtemp(prefix="crash-"))
    sys.stdout.write(f"seed {seed}, folder {folder}\n")

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    outcome = Campaign(folder, seed=seed, say=say).run(args.kills)
    say("\n".join(["", *table(outcome)]))
    if not outcome.violations:
        shutil.rmtree(folder)
        return 0
    for violation in outcome.violations:
        say(f"VIOLATED: {violation}")
    say(f"seed {seed}; the database, the log and the configuration are kept in {folder}")
    return 1


if __name__ == "__main__":
    sys.exit(main())

"""The daemon under load, killed again and again: the oracle finds nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.crash.rounds import Campaign, Death

KILLS = 25
ACTIONS = {"deleted messages", "deleted receipts", "held receipts", "retried receipts", "expired messages"}


@pytest.mark.timeout(600)
def test_killed_again_and_again_nothing_is_lost_and_nothing_invented() -> None:
    """25 kills, each kind at least once: what was answered is there, what was not asked for is not, all ends."""
    seed = int(os.environ.get("CRASH_SEED", "3"))
    folder = Path(tempfile.mkdtemp(prefix="crash-"))
    told: list[str] = []
    outcome = Campaign(folder, seed=seed, say=told.append).run(KILLS)
    assert not outcome.violations, "\n".join(
        [f"seed {seed}, everything is kept in {folder}", *told, *outcome.violations]
    )
    # Each kind was really died: killed at any other time, it was dealt again.
    assert outcome.hit == set(Death), outcome.missed
    assert outcome.rests >= 2
    # It proves something only if much was going on.
    figures = outcome.figures
    assert figures.registrations > 1000
    assert figures.reports > 1000
    assert figures.unanswered > KILLS
    assert figures.forgotten > 0
    assert figures.dead > 0
    assert set(figures.actions) >= ACTIONS
    # What a deletion that crossed with a client lets off some checks is a few of many.
    assert figures.exempt < figures.named / 10
    assert 0 < figures.duplicates <= figures.bound
    shutil.rmtree(folder)

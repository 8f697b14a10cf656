"""What the figures of a machine mean."""

from __future__ import annotations

import pytest

from dlr_buffer.bench.limits import Figure, limits
from dlr_buffer.storage.file_systems import FileSystem

EXT4 = FileSystem("ext4", "/dev/sda1", "/", ("rw", "relatime"))


def said(
    where: FileSystem = EXT4,
    *,
    sync_s: float = 0.000_5,
    singles_cores: float = 0.5,
    drain_cores: float = 0.5,
    preloaded: str = "",
) -> str:
    """All the sentences in one text."""
    sentences = limits(
        where,
        sync=Figure("sync", 1 / sync_s, sync_s, sync_s),
        singles=Figure("singles", 10_000, cores=singles_cores),
        bulk=Figure("bulk", 200_000),
        drain=Figure("drain", 30_000, cores=drain_cores),
        preloaded=preloaded,
    )
    return "\n".join(sentences)


def test_an_ordinary_disk() -> None:
    """Nothing is found fault with, and both rates are explained."""
    singles, drain = said().splitlines()
    assert singles == (
        "Registering one at a time keeps the daemon busy for 50% of a core; the rest of the time it waits for the disk"
        " (a sync takes 0.5 ms) and for the apps. In bulk a message takes 5% of that time."
    )
    assert drain == (
        "Draining keeps it busy for 50% of a core; the rest of the time it waits for the stand-in, which runs beside"
        " it. In life, Smartswitch's answers and its `concurrency` limit it first."
    )


def test_the_processor() -> None:
    """A daemon that is busy all the time is limited by the processor."""
    assert said(singles_cores=0.95).count("the processor limits it") == 1
    assert said(singles_cores=0.95, drain_cores=1.05).count("the processor limits it") == 2


def test_a_slow_disk() -> None:
    """A sync of eight milliseconds bounds an app that asks one at a time, and is named."""
    assert "A sync takes 8 ms: this disk has no cache" in said(sync_s=0.008)
    assert "no more than 125 a second" in said(sync_s=0.008)


@pytest.mark.parametrize(
    ("where", "sync_s", "preloaded", "words"),
    [
        (FileSystem("tmpfs", "tmpfs", "/tmp", ("rw",)), 0.000_001, "", "in memory (tmpfs)"),
        (FileSystem("nfs4", "host:/x", "/mnt", ("rw",)), 0.001, "", "on a network (nfs4)"),
        (FileSystem("ext4", "/dev/sda1", "/", ("rw", "nobarrier")), 0.001, "", "mounted with nobarrier"),
        (FileSystem("ext3", "/dev/sda1", "/", ("barrier=0",)), 0.000_01, "", "mounted with barrier=0"),
        (EXT4, 0.000_02, "", "quicker than a disk can be"),
        (EXT4, 0.000_5, "/usr/lib/libeatmydata.so", "nothing is synced"),
    ],
)
def test_a_disk_that_is_not_durable(where: FileSystem, sync_s: float, preloaded: str, words: str) -> None:
    """What is acknowledged but not safe is said first."""
    first, *others = said(where, sync_s=sync_s, preloaded=preloaded).splitlines()
    assert words in first
    assert len(others) == 2

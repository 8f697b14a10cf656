"""On which file system a folder lies."""

from __future__ import annotations

from pathlib import Path

from dlr_buffer.storage.file_systems import file_system


def test_the_file_system_of_a_folder(tmp_path: Path) -> None:
    """The innermost mount counts, the later of two at one place, and escaped names are read."""
    (tmp_path / "a disk" / "queue").mkdir(parents=True)
    (tmp_path / "a diskette").mkdir()
    escaped = str(tmp_path / "a disk").replace(" ", "\\040")
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/root / ext4 rw,relatime 0 0\n"
        f"/dev/sdb1 {escaped} ext2 rw 0 0\n"
        f"/dev/sdb2 {escaped} xfs rw,nobarrier 0 0\n"
    )
    found = file_system(tmp_path / "a disk" / "queue", mounts)
    assert (found.kind, found.source, found.options) == ("xfs", "/dev/sdb2", ("rw", "nobarrier"))
    assert str(found) == "xfs on /dev/sdb2"
    assert file_system(tmp_path / "a diskette", mounts).kind == "ext4"


def test_where_the_kernel_tells_nothing(tmp_path: Path) -> None:
    """Without a list of mounts the file system is unknown."""
    assert file_system(tmp_path, tmp_path / "mounts").kind == "unknown"


def test_this_machine(tmp_path: Path) -> None:
    """The kernel's own list can be read."""
    assert file_system(tmp_path).kind != "unknown"

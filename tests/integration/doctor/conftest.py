"""A folder for sockets and queues that any user of this machine gets to."""

from tests.unit.doctor.conftest import public_folder

__all__ = ["public_folder"]

"""Reading one TOML table key by key, noting every problem instead of stopping at the first.

Types, ranges and unknown keys are seen to here; which keys there are is said in ``reading``. A value that is wrong
is noted and replaced by the default, so that reading goes on and all problems are reported at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from dlr_buffer.config.settings import Problem
from dlr_buffer.config.values import parse_duration, parse_size, write_duration, write_size

MAX_SOCKET_PATH_BYTES = 107
"""Longest path of a Unix socket on Linux: ``sun_path`` has 108 bytes, the last of them NUL (unix(7))."""
_OWNER_READS_AND_WRITES = 0o600

_Choice = TypeVar("_Choice", bound=str)

_DURATION_HELP = (
    'write a duration as a whole number and a unit in quotes, like "250ms", "30s", "10m", "72h" or "7d"'
)
_SIZE_HELP = 'write a size as a whole number and a unit in quotes, like "512B", "8KiB", "256MiB" or "1GiB"'


class Table:
    """One table at the dotted ``path`` ("" for the document), its ``values``, and the list that problems go to."""

    def __init__(self, path: str, values: Mapping[str, object], problems: list[Problem]) -> None:
        """Start with no key read."""
        self._path = path
        self._values = values
        self._problems = problems
        self._known: list[str] = []

    def path(self, key: str) -> str:
        """Give the dotted name of ``key`` in this table, as problems name it."""
        return f"{self._path}.{key}" if self._path else key

    def note(self, key: str, detail: str) -> None:
        """Note that something is wrong with ``key``."""
        self._problems.append(Problem(self.path(key), detail))

    def sound(self, *keys: str) -> bool:
        """Say whether no problem was noted for any of ``keys``, so that comparing them makes sense."""
        noted = {problem.path for problem in self._problems}
        return noted.isdisjoint(self.path(key) for key in keys)

    def keys(self) -> tuple[str, ...]:
        """Give the keys that the file has here."""
        return tuple(self._values)

    def has(self, key: str) -> bool:
        """Say whether the file has ``key`` here, with whatever value."""
        return key in self._values

    def take(self, key: str) -> object | None:
        """Give the value as TOML has it, or None if it is left out, and count ``key`` as a known one."""
        self._known.append(key)
        return self._values.get(key)

    def table(self, key: str) -> Table:
        """Give the table under ``key``; one left out is empty."""
        value = self.take(key)
        if isinstance(value, dict):
            return Table(self.path(key), value, self._problems)
        if value is not None:
            self.note(key, f"is a section: write [{self.path(key)}] on a line of its own")
        return Table(self.path(key), {}, self._problems)

    def text(self, key: str, default: str) -> str:
        """Read a string; its content is never repeated in a problem."""
        value = self.take(key)
        if value is None or isinstance(value, str):
            return default if value is None else value
        self.note(key, "must be a string in quotes")
        return default

    def choice(self, key: str, default: _Choice, choices: tuple[_Choice, ...]) -> _Choice:
        """Read one of ``choices``."""
        value = self.take(key)
        for choice in choices:
            if value == choice:
                return choice
        if value is not None:
            self.note(key, "must be one of " + ", ".join(f'"{choice}"' for choice in choices))
        return default

    def boolean(self, key: str, *, default: bool) -> bool:
        """Read true or false."""
        value = self.take(key)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        self.note(key, "must be true or false, without quotes")
        return default

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """Read a whole number from ``low`` to ``high``."""
        value = self.take(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.note(key, f"must be a whole number from {low} to {high}, without quotes")
            return default
        return value

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """Read a number that is 0 or from ``low`` to ``high``."""
        value = self.take(key)
        if value is None:
            return default
        # NaN fails both comparisons, so it is refused as well.
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not (value == 0 or low <= value <= high)
        ):
            self.note(key, f"must be 0 or a number from {low:g} to {high:g}, without quotes")
            return default
        return float(value)

    def duration(self, key: str, default: int, low: int, high: int) -> int:
        """Read a duration from ``low`` to ``high``; all in milliseconds."""
        return self._quantity(key, default, low, high, (parse_duration, write_duration, _DURATION_HELP))

    def size(self, key: str, default: int, low: int, high: int) -> int:
        """Read a size from ``low`` to ``high``; all in bytes."""
        return self._quantity(key, default, low, high, (parse_size, write_size, _SIZE_HELP))

    def mode(self, key: str, default: int, allowed: int) -> int:
        """Read a socket's mode, an octal string; the owner's rw is a must and no bit outside ``allowed`` may be set."""
        value = self.take(key)
        if value is None:
            return default
        problem = f'must be an octal mode in quotes, like "0660", from "0600" to "{allowed:04o}"'
        digits = value if isinstance(value, str) and len(value) in {3, 4} else ""
        if not digits or set(digits) - set("01234567"):
            self.note(key, problem)
            return default
        mode = int(digits, 8)
        if mode & _OWNER_READS_AND_WRITES != _OWNER_READS_AND_WRITES or mode & ~allowed:
            self.note(key, problem + "; none may execute it")
            return default
        return mode

    def socket(self, key: str, default: Path) -> Path:
        """Read the absolute path of a Unix socket."""
        value = self.text(key, str(default))
        if not value.startswith("/") or value.endswith("/") or "\0" in value:
            self.note(key, "must be the absolute path of a socket, like " + str(default))
        elif len(value.encode()) > MAX_SOCKET_PATH_BYTES:
            self.note(
                key,
                f"is longer than the {MAX_SOCKET_PATH_BYTES} bytes that the path of a Unix socket may have",
            )
        else:
            return Path(value)
        return default

    def close(self, hints: Mapping[str, str] | None = None) -> None:
        """Note every key of the file that was not taken, with the nearest one that is known.

        ``hints`` maps keys that people are likely to try to what they should do instead.
        """
        for key in self._values:
            if key in self._known:
                continue
            # Keys are ASCII by the schema; a nearest one is sought without regard to case.
            near = difflib.get_close_matches(key.lower(), self._known, n=1)
            if hints and key in hints:
                self.note(key, hints[key])
            elif near:
                self.note(key, f"is not a key here; did you mean {near[0]}?")
            else:
                self.note(key, "is not a key here; the keys are " + ", ".join(self._known))

    def _quantity(
        self,
        key: str,
        default: int,
        low: int,
        high: int,
        spelling: tuple[Callable[[str], int], Callable[[int], str], str],
    ) -> int:
        parse, write, advice = spelling
        value = self.take(key)
        if value is None:
            return default
        try:
            amount = parse(value) if isinstance(value, str) else None
        except ValueError:
            amount = None
        if amount is None:
            self.note(key, advice)
            return default
        if not low <= amount <= high:
            self.note(key, f"must be from {write(low)} to {write(high)}")
            return default
        return amount

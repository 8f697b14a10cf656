"""From a `Configuration` back to text, and what differs between two of them.

For people who want to see what holds (``check-config``) and for the reload. Secrets come out as ``***``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from typing import Any, ClassVar, Protocol

from dlr_buffer.config.settings import ApiSettings, Configuration, is_derived
from dlr_buffer.config.values import write_duration, write_size

# The sections that bind sockets or open files at start, but for the keys named; all others are taken over by a reload.
_NEED_RESTART = ("api", "database")
_RELOADED = ("client_allow", "admin_allow")


class _Record(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


def describe(configuration: Configuration) -> str:
    """Write the effective values, defaults included, as TOML with every secret as ``***``.

    In place of ``password_file`` there is ``password``, likewise for other secrets; groups and users are numbers.
    """
    lines: list[str] = []
    for section in fields(configuration):
        value = getattr(configuration, section.name)
        if isinstance(value, Mapping):
            for name, record in value.items():
                lines += _section(f"{section.name}.{name}", record)
        else:
            lines += _section(section.name, value)
    return "\n".join(lines[1:]) + "\n"


def restart_needed(old: Configuration, new: Configuration) -> tuple[str, ...]:
    """Name the keys (dotted) whose change from ``old`` to ``new`` is without effect until a restart."""
    return tuple(
        f"{section}.{key_of(item.name)}"
        for section in _NEED_RESTART
        for item in fields(getattr(old, section))
        if item.name not in _RELOADED
        and getattr(getattr(old, section), item.name) != getattr(getattr(new, section), item.name)
    )


def left_to_socket_units(api: ApiSettings, name: str) -> tuple[str, ...]:
    """Name the keys (dotted) that were set but have no effect where systemd hands over the socket ``name``.

    That is ``client`` or ``admin``.
    """
    default = ApiSettings()
    return tuple(
        f"api.{key}"
        for key in (f"{name}_mode", f"{name}_group")
        if getattr(api, key) != getattr(default, key)
    )


def key_of(field_name: str) -> str:
    """Give the key in the file for a record's field, which carries its unit in its name."""
    # max_url_bytes is a plain number in the file and keeps its unit there; min_free is a size with a unit.
    return "min_free" if field_name == "min_free_bytes" else field_name.removesuffix("_ms")


def _values(record: _Record) -> Iterator[tuple[str, str]]:
    """Give each key of a record with its value as TOML; sections within and keys without a value are left out."""
    for item in fields(record):
        value = getattr(record, item.name)
        if is_dataclass(value) or value is None or is_derived(item):
            continue
        yield key_of(item.name), _written(item.name, value)


def _section(path: str, record: _Record) -> Iterator[str]:
    yield ""
    yield f"[{path}]"
    # An account's name stands in its section's already.
    yield from (f"{key} = {value}" for key, value in _values(record) if key != "name")
    for item in fields(record):
        value = getattr(record, item.name)
        if is_dataclass(value) and not isinstance(value, type):
            yield from _section(f"{path}.{item.name}", value)


def _written(field_name: str, value: object) -> str:
    if field_name.endswith("_ms") and isinstance(value, int):
        return f'"{write_duration(value)}"'
    if field_name == "min_free_bytes" and isinstance(value, int):
        return f'"{write_size(value)}"'
    if field_name.endswith("_mode"):
        return f'"{value:04o}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    # A basic string of TOML is written like JSON's.
    return json.dumps(str(value), ensure_ascii=False)

"""What check-config shows, what a reload compares, and that the shipped file and the docs name every key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Protocol, get_type_hints

import pytest

from dlr_buffer.config import AccountSettings, Configuration, Secret, describe, parse, restart_needed
from dlr_buffer.config.description import key_of
from dlr_buffer.config.settings import is_derived

ROOT = Path(__file__).parents[3]
SHIPPED = (ROOT / "config/config.toml").read_text()


class Record(Protocol):
    """Any of the configuration's dataclasses."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    """Give a configuration with every default and one account."""
    (tmp_path / "default.password").touch(0o600)
    (tmp_path / "default.password").write_text("s3cr3t")
    text = '[accounts.default]\nurl = "https://smartswitch.example.com/api/dlr"\nlogin = "supplier"\n'
    return parse(text, {"CREDENTIALS_DIRECTORY": str(tmp_path)})


def keys(record: type[Record], path: str) -> Iterator[str]:
    """Give the dotted key of every setting below a record, from the record's own fields."""
    hints = get_type_hints(record)
    for item in fields(record):
        if is_derived(item):
            continue
        if is_dataclass(hints[item.name]):
            yield from keys(hints[item.name], f"{path}{item.name}.")
        elif item.name == "accounts":
            yield from keys(AccountSettings, "accounts.default.")
        elif item.name in {"password", "proxy_credentials"}:
            yield f"{path}{item.name}_file"
        elif item.name != "name":
            yield path + key_of(item.name)


# Both ways to give a login lead to one field.
EVERY_KEY = sorted([*keys(Configuration, ""), "accounts.default.login_file"])
# These have no default that the shipped file could state, so they stand there commented out.
WITHOUT_DEFAULT = (
    "client_group",
    "admin_group",
    "client_allow",
    "admin_allow",
    "login_file",
    "proxy",
    "proxy_credentials_file",
    "ca_file",
    "client_cert",
    "client_key",
)


def leaves(table: dict[str, Any], path: str = "") -> Iterator[str]:
    """Give the dotted key of every value in a TOML document."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield path + key


def test_the_shipped_file_has_every_key_and_only_defaults(
    tmp_path: Path, configuration: Configuration
) -> None:
    """The commented file shows all there is; using it unchanged is the same as leaving everything out."""
    assert len(EVERY_KEY) > 25
    uncommented = re.sub(rf"^#((?:{'|'.join(WITHOUT_DEFAULT)}) = )", r"\1", SHIPPED, flags=re.MULTILINE)
    assert sorted(leaves(tomllib.loads(uncommented))) == EVERY_KEY
    assert len(list(leaves(tomllib.loads(SHIPPED)))) == len(EVERY_KEY) - len(WITHOUT_DEFAULT)

    text = SHIPPED.replace("/etc/dlr-buffer/default.password", str(tmp_path / "default.password"))
    assert parse(text, {}) == configuration


def test_each_key_of_the_shipped_file_is_explained() -> None:
    """Each setting stands under a comment of its own."""
    lines = SHIPPED.splitlines()
    for above, line in pairwise(lines):
        if re.match(r"#?[a-z_]+ = ", line):
            assert above.startswith("# "), line


@pytest.mark.parametrize("path", EVERY_KEY)
def test_the_docs_explain_every_key_with_its_default(path: str) -> None:
    """docs/configuration.md has a row for each key in its section's table, with the shipped file's default."""
    section, _, key = path.replace("accounts.default", "accounts.NAME").rpartition(".")
    docs = (ROOT / "docs/configuration.md").read_text()
    _, heading, rest = docs.partition(f"`[{section}]`\n")
    table = rest.partition("\n#")[0]
    row = re.search(rf"^\| `{key}` \| (.*?) \|", table, flags=re.MULTILINE)
    assert heading
    assert row, f"no row for {path}"
    if key in {"url", "login", "password_file"} and section.startswith("accounts"):
        assert "must be given" in row[1]
    elif key in WITHOUT_DEFAULT:
        assert row[1] == "none" or row[1].startswith("`$CREDENTIALS_DIRECTORY/")
    else:
        assert f"{key} = {row[1].strip('`')}\n" in SHIPPED


def test_the_docs_know_no_other_key() -> None:
    """A key that was removed or renamed does not live on in the docs."""
    rows = re.findall(r"^\| `([a-z_]+)` \|", (ROOT / "docs/configuration.md").read_text(), flags=re.MULTILINE)
    assert sorted(rows) == sorted(path.rpartition(".")[2] for path in EVERY_KEY)


def test_the_description_is_toml_that_means_the_same(tmp_path: Path, configuration: Configuration) -> None:
    """What check-config shows can be read back, and holds the very same settings."""
    changed = replace(
        configuration,
        api=replace(
            configuration.api, client_group=0, client_mode=0o600, client_allow=(0, 1001), admin_allow=()
        ),
        accounts={
            name: replace(account, rate_limit=2.5, retry=replace(account.retry, max_ms=90_001))
            for name, account in configuration.accounts.items()
        },
    )
    shown = describe(changed)
    restored = shown.replace('password = "***"', f'password_file = "{tmp_path}/default.password"')
    again = parse(restored.replace('login = "***"', 'login = "supplier"'), {})
    assert again == changed


def test_the_description_hides_secrets(configuration: Configuration) -> None:
    """Login and password are asterisks, and are there."""
    shown = describe(configuration)
    assert "s3cr3t" not in shown
    assert "supplier" not in shown
    assert shown.count('"***"') == 2


def test_what_needs_a_restart_is_named(configuration: Configuration) -> None:
    """Every key of the sockets and of the database is named by its dotted name; nothing else is."""
    assert restart_needed(configuration, configuration) == ()
    new = replace(
        configuration,
        api=replace(configuration.api, admin_group=5, admin_mode=0o660),
        database=replace(configuration.database, min_free_bytes=1 << 30),
    )
    assert restart_needed(configuration, new) == ("api.admin_group", "api.admin_mode", "database.min_free")
    account = replace(configuration.accounts["default"], password=Secret("new"), concurrency=9, max_waiting=5)
    reloadable = replace(
        configuration,
        accounts={"default": account, "second": account},
        api=replace(configuration.api, client_allow=(), admin_allow=(1001,)),
        messages=replace(configuration.messages, validity_period_ms=1_000),
        retention=replace(configuration.retention, dead_ms=1_000),
        log=replace(configuration.log, level="debug", format="json"),
    )
    assert restart_needed(configuration, reloadable) == ()

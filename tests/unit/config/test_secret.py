"""A secret never shows itself by accident."""

from __future__ import annotations

import copy
import json
import pickle
import traceback

import pytest

from dlr_buffer.config import AccountSettings, Secret


def test_no_way_of_printing_shows_it() -> None:
    """Every usual way to make text of it, alone or inside a record, gives asterisks."""
    secret = Secret("hunter2")
    account = AccountSettings("default", "https://smartswitch.example.com/", secret, secret)
    shown = [
        str(secret),
        repr(secret),
        f"{secret}",
        f"{secret!r:>9}",
        "%s" % secret,
        repr(account),
        str([secret]),
    ]  # noqa: UP031
    assert all("***" in text and "hunter2" not in text for text in shown)
    assert secret.reveal() == "hunter2"


def test_it_cannot_be_serialised() -> None:
    """Neither pickle nor JSON carries it out of the program by accident."""
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(Secret("hunter2"))
    with pytest.raises(TypeError):
        json.dumps(Secret("hunter2"))


def test_it_compares_by_content() -> None:
    """A reload can tell whether a password changed; a plain string never passes for a secret."""
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1


def test_copies_stay_secrets() -> None:
    """Copying a record deeply works and shows as little."""
    assert copy.deepcopy([Secret("hunter2")]) == [Secret("hunter2")]


def test_a_traceback_with_locals_hides_it() -> None:
    """A traceback that shows local variables shows asterisks."""
    secret = Secret("hunter2")
    try:
        raise ValueError(secret)
    except ValueError as error:
        shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "secret = ***" in shown
    # The literal stands in this file's own source lines only.
    assert "ValueError: hunter2" not in shown

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
        repr(account),
        str([secret]),
    ]
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
    shown = "".join(_failing_with(secret).format())
    assert "secret = ***" in shown
    # The literal stands in this file's own source lines only.
    assert "ValueError: ***" in shown


def _failing_with(secret: Secret) -> traceback.TracebackException:
    with pytest.raises(ValueError, match=r"\*\*\*") as caught:
        raise ValueError(secret)
    return traceback.TracebackException.from_exception(caught.value, capture_locals=True)

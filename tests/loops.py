"""Running a coroutine as a test, without a plug-in."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import ParamSpec

P = ParamSpec("P")


def on_loop(test: Callable[P, Coroutine[None, None, None]]) -> Callable[P, None]:
    """Make a test of a coroutine function: each call runs it on an event loop of its own."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run

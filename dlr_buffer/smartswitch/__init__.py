"""Talking to Smartswitch: the wire format, the reading of answers, and the HTTP client.

`wire` and `answers` are pure; only `client` knows httpx. Nothing of it is imported here, so that whoever needs only
the pure parts does not load an HTTP client. When to send, and what an answer means for the queue, is the
flusher's.
"""

import sys

# httpx's own command line, which it imports where rich is installed, takes as long to load as all the rest of it.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # None: not to be imported (PEP 328's machinery)

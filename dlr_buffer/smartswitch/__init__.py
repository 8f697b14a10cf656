"""Talking to Smartswitch: the wire format, the reading of answers, and the HTTP client.

`wire` and `answers` are pure; only `client` knows httpx. Nothing is imported here, so that whoever needs only
the pure parts does not load an HTTP client. When to send, and what an answer means for the queue, is the
flusher's.
"""

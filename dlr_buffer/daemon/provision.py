"""From the configuration to what each part needs of it, so that no part knows the configuration.

Pure, but for the limit of open files, which is raised and divided here, and for whom the daemon runs as. Which parts
there are, and when they are given what they need, is the daemon's.
"""

from __future__ import annotations

import os
import random
import ssl
from functools import partial
from urllib.parse import urlsplit

from dlr_buffer.backoff import backoff_ms
from dlr_buffer.config import AccountSettings, Configuration, SystemTrust
from dlr_buffer.flusher.ports import FlushSettings
from dlr_buffer.health import HealthSettings
from dlr_buffer.local_api.connections import Shares, raise_descriptor_limit, share_descriptors
from dlr_buffer.local_api.peers import AllowList
from dlr_buffer.receipt_queue.queue import QueueSettings
from dlr_buffer.receipts import RefusalPolicy
from dlr_buffer.retention import RetentionSettings
from dlr_buffer.smartswitch.client import UpstreamSettings
from dlr_buffer.smartswitch.transport import Proxy


def shares(configuration: Configuration) -> Shares:
    """Divide the open files; twice what accounts may use, for a reload has the old and the new ones for a while."""
    upstream = 2 * sum(account.concurrency for account in configuration.accounts.values())
    return share_descriptors(raise_descriptor_limit(), upstream)


def queue_settings(configuration: Configuration) -> QueueSettings:
    """Return what the receipt queue goes by."""
    return QueueSettings(
        accounts=frozenset(configuration.accounts),
        default_validity_ms=configuration.messages.validity_period_ms,
        register_unknown=configuration.messages.unknown_messages == "register",
        max_waiting=max_waiting(configuration),
    )


def max_waiting(configuration: Configuration) -> dict[str, int]:
    """Return the accounts that have a limit of waiting messages, with it."""
    return {
        name: account.max_waiting for name, account in configuration.accounts.items() if account.max_waiting
    }


def allow_lists(configuration: Configuration) -> tuple[AllowList, AllowList]:
    """Return who may use the client socket and the admin socket; root always may be an admin.

    So may the daemon's own user: `systemctl reload` asks through that socket what became of the reload.
    """
    api = configuration.api
    always = {0, os.geteuid()}
    return (
        AllowList(None if api.client_allow is None else frozenset(api.client_allow), "[api] client_allow"),
        AllowList(
            None if api.admin_allow is None else frozenset(always.union(api.admin_allow)), "[api] admin_allow"
        ),
    )


def retention_settings(configuration: Configuration) -> RetentionSettings:
    """Return how long what is settled stays."""
    return RetentionSettings(
        acknowledged_ms=configuration.retention.acknowledged_ms, dead_ms=configuration.retention.dead_ms
    )


def upstream_settings(account: AccountSettings) -> UpstreamSettings:
    """Return what the client of an account needs of its configuration; it holds the credentials."""
    return UpstreamSettings(
        url=account.url,
        login=account.login.reveal(),
        password=account.password.reveal(),
        form=account.parameters == "form",
        timeout_ms=account.timeout_ms,
        concurrency=account.concurrency,
        proxy=_proxy(account),
    )


def trust_for(account: AccountSettings, trust: SystemTrust) -> tuple[ssl.SSLContext | None, str]:
    """Return whom an account's connections trust, None without TLS, and a fingerprint that differs when they do."""
    if not account.url.startswith("https:"):
        return None, ""
    if account.tls.context is not None:
        return account.tls.context, account.tls.fingerprint
    return trust.context(account.tls.min_version)


def flush_settings(
    account: AccountSettings, upstream: UpstreamSettings, rng: random.Random, *, paused: bool
) -> FlushSettings:
    """Return what the flusher of an account goes by; ``rng`` gives the jitter of its waits."""
    retry, batch = account.retry, account.batch
    wait = partial(backoff_ms, initial_ms=retry.initial_ms, max_ms=retry.max_ms, rng=rng)
    return FlushSettings(
        name=account.name,
        health=HealthSettings(
            concurrency=account.concurrency,
            max_receipts=batch.max_receipts,
            retry_max_ms=retry.max_ms,
            auth_probe_ms=retry.auth_probe_ms,
            backoff_ms=wait,
        ),
        policy=RefusalPolicy(max_refusals=retry.max_refusals, lifetime_ms=retry.lifetime_ms, backoff_ms=wait),
        linger_ms=batch.linger_ms,
        budget_bytes=batch.max_url_bytes - upstream.overhead,
        rate_limit=account.rate_limit,
        paused=paused,
    )


def _proxy(account: AccountSettings) -> Proxy | None:
    if account.proxy is None:
        return None
    parts = urlsplit(account.proxy)
    credentials = None if account.proxy_credentials is None else account.proxy_credentials.reveal()
    return Proxy(parts.hostname or "", parts.port or 0, credentials)

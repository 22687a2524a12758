"""Health of the services: a client of the readiness and metrics pages on their metrics ports."""

from __future__ import annotations

import re
import urllib.error
import urllib.request

from shared.settings import Settings

CERTIFICATE_DAYS = 14
"""Days before a certificate expires from which it is a problem; automatic renewal happens earlier."""

CORRUPTED_SECONDS = 3600.0
"""Seconds for which corrupted data is reported after a service met it last; stages try such mail every half minute."""


def certificate_problems(metrics: str, now: float) -> list[str]:
    """Return the problems of the certificate that a service shows its clients, from its metrics. Pure.

    :param now: seconds of the Unix epoch.
    """
    problems = []
    if re.search(r"^mailgroup_tls_certificate_refused 1\.0$", metrics, re.M):
        problems.append("the certificate in its files cannot be used, the previous one is still in use; see the log")
    expires = re.search(r"^mailgroup_tls_certificate_expiry_timestamp_seconds ([\d.e+]+)$", metrics, re.M)
    if expires and (days := (float(expires[1]) - now) / 86400) < CERTIFICATE_DAYS:
        problems.append("its certificate has expired" if days < 0 else f"its certificate expires in {days:.0f} days")
    return problems


def corruption_problems(metrics: str, now: float) -> list[str]:
    """Return a problem if PostgreSQL has lately reported corrupted data to a service, from its metrics. Pure.

    :param now: seconds of the Unix epoch.
    """
    seen = re.search(r"^mailgroup_database_corrupted_timestamp_seconds ([\d.e+]+)$", metrics, re.M)
    if seen is None or now - float(seen[1]) > CORRUPTED_SECONDS:
        return []
    return ["PostgreSQL reports corrupted data; its log and that of the service name the table or index"]


def health_url(settings: Settings, name: str) -> str:
    """Return the URL of the metrics port of a service. Pure."""
    host = "127.0.0.1" if settings.metrics_host in ("0.0.0.0", "::") else settings.metrics_host  # to connect to
    if settings.service_host is not None:
        host = settings.service_host.replace("{name}", name).replace("{host}", name.replace("_", "-"))
    return f"http://{host}:{settings.metrics_port_of(name)}"


def fetch_health(base: str) -> tuple[str, str]:
    """Return why a service is not ready ('' if it is ready), and its metrics."""
    try:
        with urllib.request.urlopen(f"{base}/readyz", timeout=5) as answer:
            answer.read()
        with urllib.request.urlopen(f"{base}/metrics", timeout=5) as answer:
            return "", answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode().strip(), ""
    except OSError as error:
        reason = getattr(error, "reason", error)
        return f"does not answer at {base} ({getattr(reason, 'strerror', None) or reason})", ""

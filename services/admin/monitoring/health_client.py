"""Asking the services how they are, on their metrics ports, and reading what they say."""

from __future__ import annotations

import re
import urllib.error
import urllib.request

from shared.settings import Settings

CERTIFICATE_DAYS = 14
"""An automatic renewal happens earlier than that."""


def certificate_problems(metrics: str, now: float) -> list[str]:
    """What is wrong with the certificate that a service shows its clients, by its metrics. Pure.

    :param now: seconds of the Unix epoch.
    """
    problems = []
    if re.search(r"^mailgroup_tls_certificate_refused 1\.0$", metrics, re.M):
        problems.append("the certificate in its files cannot be used, the one before is; the log says why")
    expires = re.search(r"^mailgroup_tls_certificate_expiry_timestamp_seconds ([\d.e+]+)$", metrics, re.M)
    if expires and (days := (float(expires[1]) - now) / 86400) < CERTIFICATE_DAYS:
        problems.append("its certificate has expired" if days < 0 else f"its certificate expires in {days:.0f} days")
    return problems


def health_url(settings: Settings, name: str) -> str:
    """Where the service of this name tells about itself. Pure."""
    host = "127.0.0.1" if settings.metrics_host in ("0.0.0.0", "::") else settings.metrics_host  # asked, not bound
    if settings.service_host is not None:
        host = settings.service_host.replace("{name}", name).replace("{host}", name.replace("_", "-"))
    return f"http://{host}:{settings.metrics_port_of(name)}"


def fetch_health(base: str) -> tuple[str, str]:
    """Why a service is not ready ('' if it is), and its metrics."""
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

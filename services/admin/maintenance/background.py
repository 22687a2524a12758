"""The periodic work of the service admin for the whole system: monitoring and retention."""

from __future__ import annotations

import asyncio

from services.admin.maintenance.retention import run_retention
from services.admin.monitoring.monitor import Monitor
from shared.runtime.process import Service


async def run_background(service: Service) -> None:
    """Run both until the service is to stop."""
    await asyncio.gather(Monitor(service).run(), run_retention(service))

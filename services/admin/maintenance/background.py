"""What the service admin does by the clock for the whole system: it looks for what is wrong, and purges what is old."""

from __future__ import annotations

import asyncio

from services.admin.maintenance.retention import run_retention
from services.admin.monitoring.monitor import Monitor
from shared.runtime.process import Service


async def run_background(service: Service) -> None:
    """Do it until the service is to stop."""
    await asyncio.gather(Monitor(service).run(), run_retention(service))

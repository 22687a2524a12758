"""What the service admin does by the clock for the whole system: it looks for what is wrong, and purges what is old."""

from __future__ import annotations

import asyncio

from services.admin.maintenance.retention import purge_for_ever
from services.admin.monitoring.monitor import Watching
from shared.runtime.process import Service


async def tend(service: Service) -> None:
    """Do it until the service is to stop."""
    await asyncio.gather(Watching(service).run(), purge_for_ever(service))

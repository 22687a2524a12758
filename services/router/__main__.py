"""Queue ``router`` -> Router -> ``routed.<local>``."""

from services.router.worker import RouterWorker
from shared.runtime.process import Service, run
from shared.runtime.queue_worker import run_worker


async def serve(service: Service) -> None:
    """Route mail until the service is to stop."""
    settings = service.settings
    await run_worker(service, RouterWorker(service.database, settings.sweep_grace_seconds, settings.junk_rules))


if __name__ == "__main__":
    run("router", serve)

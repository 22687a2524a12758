"""Due accounts -> Polling -> ``fetched.<external>``."""

from services.fetcher.scheduler import serve
from shared.provider.credentials import Credentials
from shared.provider.vault import Vault
from shared.runtime.memory import keep_large_blocks_apart
from shared.runtime.process import Service, run


async def work(service: Service) -> None:
    """Poll accounts until the service is to stop."""
    settings = service.settings
    await serve(service, Credentials(service.database, Vault.from_settings(settings), settings.allow_private_upstream))


if __name__ == "__main__":
    keep_large_blocks_apart()
    run("fetcher", work)

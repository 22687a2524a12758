"""Queue ``mailbox`` -> Mailbox -> the folder INBOX of its recipients, which pop3_out serves."""

from services.mailbox.worker import MailboxWorker
from shared.runtime.process import Service, run
from shared.runtime.queue_worker import run_worker


async def serve(service: Service) -> None:
    """Deliver mail until the service is to stop."""
    await run_worker(service, MailboxWorker(service.database, service.settings.sweep_grace_seconds))


if __name__ == "__main__":
    run("mailbox", serve)

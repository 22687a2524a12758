"""SMTP_PORT, SUBMISSION_PORT, SMTPS_PORT -> database -> ``submitted.<external>``."""

from services.smtp_in.listener import serve
from shared.runtime.memory import keep_large_blocks_apart
from shared.runtime.process import run

if __name__ == "__main__":
    keep_large_blocks_apart()
    run("smtp_in", serve, broker="optional")

"""SMTP_PORT, SUBMISSION_PORT, SMTPS_PORT -> database -> ``submitted.<external>``."""

from services.smtp_in.listener import serve
from shared.service import run

if __name__ == "__main__":
    run("smtp_in", serve)

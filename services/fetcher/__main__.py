"""Accounts that are due -> Polling -> ``fetched.<external>``."""

from services.fetcher.scheduler import serve
from shared.service import run

if __name__ == "__main__":
    run("fetcher", serve)

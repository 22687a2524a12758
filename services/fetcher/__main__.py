"""Accounts that are due -> Polling -> ``fetched.<external>``."""

from services.fetcher.scheduler import serve
from shared.runtime.process import keep_large_blocks_apart, run

if __name__ == "__main__":
    keep_large_blocks_apart()
    run("fetcher", serve)

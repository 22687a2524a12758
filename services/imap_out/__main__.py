"""Wiring only: the package docstring describes the service."""

from services.imap_out.listener import serve
from shared.runtime.process import run

if __name__ == "__main__":
    run("imap_out", serve, broker="optional")

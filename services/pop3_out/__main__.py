"""Wiring only: the package docstring describes the service."""

from services.pop3_out.listener import serve
from shared.runtime.process import run

if __name__ == "__main__":
    run("pop3_out", serve, broker="optional")

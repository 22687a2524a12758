"""Start of the command line ``mailgroup``."""

from services.admin.cli import completion
from services.admin.cli.app import app

if __name__ == "__main__":
    completion.prepare()
    app(prog_name="mailgroup")

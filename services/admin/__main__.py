"""The command line."""

from services.admin.cli.app import app

if __name__ == "__main__":
    app(prog_name="mailgroup")

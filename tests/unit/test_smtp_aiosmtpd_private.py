"""services/smtp_in/aiosmtpd_private.py: one file depends on private members of aiosmtpd, of one version."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from services.smtp_in.aiosmtpd_private import CHECKED_VERSION

FOLDER = Path(__file__).resolve().parents[2] / "services" / "smtp_in"
PRIVATE = re.compile(
    r"\._?(?:_handle_client|_handler_coroutine|_smtp_methods|_create_session|_create_envelope|_set_rset_state"
    r"|_set_post_data_state|_reset_timeout|_timeout_\w+|_reader|_writer|_over_ssl|_tls_protocol|_original_transport)\b"
)


def test_the_installed_aiosmtpd_is_the_version_that_was_checked() -> None:
    installed = metadata.version("aiosmtpd")
    assert installed == CHECKED_VERSION, (
        f"aiosmtpd {installed} is installed, but services/smtp_in/aiosmtpd_private.py uses private members that were "
        f"checked for {CHECKED_VERSION} only: compare them with aiosmtpd/smtp.py of {installed}, then set "
        f"CHECKED_VERSION"
    )


def test_no_other_module_uses_private_members_of_aiosmtpd() -> None:
    for path in FOLDER.glob("*.py"):
        found = PRIVATE.findall(path.read_text(encoding="utf-8"))
        assert path.name == "aiosmtpd_private.py" or not found, f"{path.name}: {found}"

"""The presets of providers."""

from __future__ import annotations

import pytest

from services.admin.accounts.provider_presets import preset_for_address


@pytest.mark.parametrize(
    ("address", "smtp"),
    [
        ("team@hotmail.com", "smtp-mail.outlook.com"),
        ("team@company.onmicrosoft.com", "smtp.office365.com"),
        ("team@gmx.co.uk", "mail.gmx.com"),
        ("team@gmx.de", "mail.gmx.net"),
        ("team@web.de", "smtp.web.de"),
        ("team@zoho.com", "smtp.zoho.com"),
    ],
)
def test_mailboxes_of_one_company_have_the_servers_of_their_service(address: str, smtp: str) -> None:
    preset = preset_for_address(address)
    assert preset is not None
    assert preset.smtp.host == smtp

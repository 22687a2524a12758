"""Encrypts the passwords of external accounts: Fernet tokens under the installation's key (MAILGROUP_SECRET_KEY).

Several keys, separated by commas or white space, allow a rotation: the first key encrypts, all keys decrypt.
"""

from __future__ import annotations

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from shared.errors import Permanent
from shared.settings import Settings, SettingsError


def new_key() -> str:
    """Create a key: URL-safe base64 of 32 random bytes."""
    return Fernet.generate_key().decode()


class Vault:
    """Encrypts and decrypts passwords."""

    def __init__(self, keys: str) -> None:
        """:raises SettingsError: a key is not 32 bytes of URL-safe base64."""
        parts = keys.replace(",", " ").split()
        if not parts:
            raise SettingsError("MAILGROUP_SECRET_KEY: empty: one or more Fernet keys are needed")
        try:
            self._fernet = MultiFernet([Fernet(part) for part in parts])
        except ValueError as error:
            raise SettingsError("MAILGROUP_SECRET_KEY: not a Fernet key (32 bytes of URL-safe base64)") from error

    @classmethod
    def from_settings(cls, settings: Settings) -> Vault:
        """Create the vault of this installation. :raises SettingsError: the key is missing or invalid."""
        if settings.secret_key is None:
            raise SettingsError(
                "MAILGROUP_SECRET_KEY: not set: the key that encrypts the passwords of external accounts is needed"
            )
        return cls(settings.secret_key)

    def seal(self, password: str) -> bytes:
        """Encrypt with the first key."""
        return self._fernet.encrypt(password.encode())

    def open(self, token: bytes) -> str:
        """Decrypt. :raises Permanent: encrypted with another key."""
        try:
            return self._fernet.decrypt(token).decode()
        except InvalidToken as error:
            raise Permanent("the stored password cannot be decrypted with this key; set it again") from error

    def rotate(self, token: bytes) -> bytes:
        """Encrypt the same password with the first key. :raises Permanent: encrypted with another key."""
        try:
            return self._fernet.rotate(token)
        except InvalidToken as error:
            raise Permanent("the stored password cannot be decrypted with this key; set it again") from error

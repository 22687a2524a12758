"""Reads or changes a folder with Camel, the library of Evolution for mailboxes. Runs in Debian's own Python.

    python3 camel_script.py HOST PORT MODE USER PASSWORD CERTIFICATE FOLDER DATA

Each mail of the folder becomes a file in DATA/read. Before that, the mails of DATA/new are appended, the one with
"flag" in its file's name gets a flag, and the one with "delete" is deleted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gi

gi.require_version("Camel", "1.2")
from gi.repository import Camel, Gio  # noqa: E402


def main(host: str, port: str, mode: str, user: str, password: str, certificate: str, name: str, data: str) -> None:
    """Do all that."""
    trusted = Gio.TlsCertificate.new_from_file(certificate)

    class Session(Camel.Session):  # type: ignore[misc]
        """Trusts the given certificate, as a user does who accepts it."""

        def do_trust_prompt(self, service: Any, offered: Any, errors: Any) -> Any:
            return Camel.CertTrust.TEMPORARY if offered.is_same(trusted) else Camel.CertTrust.NEVER

    Camel.init(data, False)
    Camel.provider_init()
    session = Session(user_data_dir=data, user_cache_dir=data)
    session.set_online(True)
    store = session.add_service("account", "imapx", Camel.ProviderType.STORE)
    settings = store.ref_settings()
    for key, value in {
        "host": host,
        "port": int(port),
        "user": user,
        "auth-mechanism": "PLAIN",
        "security-method": getattr(Camel.NetworkSecurityMethod, mode),
    }.items():
        settings.set_property(key, value)
    store.set_password(password)
    store.set_online_sync(True, None)
    flags = Camel.StoreGetFolderInfoFlags
    store.get_folder_info_sync(None, flags.RECURSIVE | flags.REFRESH, None)  # it knows no other folders
    folder = store.get_folder_sync(name, 0, None)
    _change(folder, Path(data, "new"))
    folder.refresh_info_sync(None)
    for uid in folder.get_uids():
        stream = Gio.MemoryOutputStream.new_resizable()
        folder.get_message_sync(uid, None).write_to_output_stream_sync(stream, None)
        stream.close(None)
        Path(data, "read", uid).write_bytes(stream.steal_as_bytes().get_data())
    store.set_online_sync(False, None)


def _change(folder: Any, new: Path) -> None:
    subjects = {}
    for file in sorted(new.iterdir()):
        message = Camel.MimeMessage.new()
        message.construct_from_input_stream_sync(Gio.File.new_for_path(str(file)).read(None), None)
        folder.append_message_sync(message, Camel.MessageInfo.new(None), None)
        subjects[message.get_subject()] = file.name
    folder.refresh_info_sync(None)
    for uid in folder.get_uids():
        name = subjects.get(folder.get_message_info(uid).get_subject(), "")
        if "flag" in name:
            folder.set_message_flags(uid, Camel.MessageFlags.FLAGGED, Camel.MessageFlags.FLAGGED)
        if "delete" in name:
            folder.set_message_flags(uid, Camel.MessageFlags.DELETED, Camel.MessageFlags.DELETED)
    if subjects:
        folder.synchronize_sync(True, None)


if __name__ == "__main__":
    main(*sys.argv[1:])

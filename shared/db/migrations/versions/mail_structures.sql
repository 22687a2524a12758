-- Owner: services/imap_out/structure_store.py
-- What FETCH of IMAP answers of a mail without its bytes, computed soon after the arrival, or when a client first asks; a
-- missing row is computed again. structure: as services/imap_out/structure/stored.py encodes it.
create table mail_structures (
    blob_id    bigint primary key references blobs on delete cascade,
    structure  bytea not null
);

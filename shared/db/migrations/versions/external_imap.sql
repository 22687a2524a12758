-- The IMAP server of an external account; null: the account is fetched by POP3. Of an account that is fetched by IMAP,
-- pop3_host is 'imap.invalid' (NO_POP3 of shared/store/account_changes.py): code before this revision requires a name
-- there, cannot resolve this one, and so neither fetches such an account nor sends its password anywhere. A revision of
-- a later version makes the pop3_* columns null instead.
-- imap_tls_fingerprint: SHA-256 of the pinned certificate, 64 hex digits. imap_folders: names as people write them.
alter table external_accounts
    add column imap_host text,
    add column imap_port integer,
    add column imap_tls text check (imap_tls in ('none', 'starttls', 'implicit')),
    add column imap_tls_fingerprint text,
    add column imap_folders text[]
        check ((imap_host is null) = (imap_folders is null) and (imap_host is null) = (imap_port is null)
               and (imap_host is null) = (imap_tls is null) and cardinality(imap_folders) > 0
               and (imap_host is null or pop3_host = 'imap.invalid'));

-- Code before this revision, which knows POP3 alone, gives the account a POP3 server: the account is fetched by POP3
-- again, as the user of that code has asked.
create function replace_imap_by_pop3() returns trigger language plpgsql as $$
begin
    new.imap_host := null;
    new.imap_port := null;
    new.imap_tls := null;
    new.imap_tls_fingerprint := null;
    new.imap_folders := null;
    return new;
end $$;
create trigger external_accounts_protocol before update on external_accounts for each row
    when (new.imap_host is not null and new.pop3_host <> 'imap.invalid')
    execute function replace_imap_by_pop3();

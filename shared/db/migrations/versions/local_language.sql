-- language: of the mails that mailgroup writes to the person, a code of RFC 5646; null: the setting LANGUAGE.
alter table local_accounts add column language text;

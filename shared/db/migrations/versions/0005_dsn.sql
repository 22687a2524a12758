-- What the author's mail client asked to be told about the delivery (RFC 3461), as the text of the parameters; null is
-- nothing. shared/mime/dsn_options.py reads it.
alter table submissions add column asked text;             -- of MAIL: RET, ENVID
alter table submission_recipients add column asked text;   -- of RCPT: NOTIFY, ORCPT

-- Access tokens instead of a password: {"name", "issuer": {"token_url", …}, "client_id"}, shared/accounts.py OAuth.
-- The column password then holds, sealed, the refresh token and the client's secret (shared/credentials.py Grant).
alter table external_accounts add column oauth jsonb;

-- Access tokens instead of a password: {"name", "issuer": {"token_url", …}, "client_id"}, shared/store/accounts.py OAuth.
-- The column password then holds, sealed, the refresh token and the client's secret (shared/provider/credentials.py Grant).
alter table external_accounts add column oauth jsonb;

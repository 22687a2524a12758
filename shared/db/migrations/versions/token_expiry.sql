-- Code from before it uses a token until it is revoked. Null: the token was made by such code, and never expires.
alter table api_tokens add column expires_at timestamptz;

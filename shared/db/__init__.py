"""PostgreSQL without any table of mail: pool, transactions, group commit, migrations, leases."""

"""A stand-in for a mail provider and for the internet behind it, for the compose profile `demo`.

    python -m deploy.demo_provider company.yaml anna@customer.example

serves a mailbox for each external account of the accounts file and for each further address (password: demo-secret). An
address with a mailbox is deliverable, every other one is refused; no mail leaves the process, which keeps it in memory.
Do not use it for real mail: the provider of `./mailgroup demo` and of the tests is a real Dovecot and Postfix.
"""

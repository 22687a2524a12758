"""A stand-in for a mail provider and for the world behind it, for the compose profile `demo`.

    python -m deploy.demo_provider company.yaml anna@customer.example

serves a mailbox for each external account of the accounts file and for each further address (password: secret). Every
address with a mailbox is deliverable, every other one is refused; nothing leaves it. Mail is kept in memory. It is no
mail server for real mail: the provider of `./mailgroup demo` and of the tests is a real Dovecot and Postfix.
"""

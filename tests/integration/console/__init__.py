"""One part at a time, against real PostgreSQL, RabbitMQ, Dovecot and Postfix."""

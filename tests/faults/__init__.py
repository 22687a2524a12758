"""The whole system while parts of it are killed, wiped or fed with rubbish."""

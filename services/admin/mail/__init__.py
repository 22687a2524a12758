"""Single mails: search index, history, trace, the operator's operations."""

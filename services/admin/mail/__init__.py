"""Single mails: search index, history, trace, the operations of the operator."""

-- Of millions of recipients, those within the company: the search for delivered mail begins with them.
create index concurrently if not exists submission_recipients_delivered on submission_recipients (submission_id)
    where state = 'delivered';

-- relay: place of the relay (relays.place) for which the mail was claimed last; null: never, or by code before this
-- revision. A mail that the relay may have taken (uncertain, sent_unanswered) is sent by no other one.
alter table submissions add column relay text;

"""The languages of texts for people: the console, mails that mailgroup writes, and the pages of the settings.

- The source text is English and stands in the code, in ``gettext("…")`` or, in a template, ``_("…")``. Each other
  language is one file beside this one, ``<code>.po`` (gettext), named by the code of RFC 5646: to add a language, copy
  ``de.po``, translate it and run ``make texts``.
- Looking up texts, and the language that applies: translation.py.
- Commands, logs, metrics and the REST API are English.

The language is a context variable: a request of the console or the writing of a mail sets it with ``in_language``; the
functions in between need no parameter for it.
"""

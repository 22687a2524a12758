"""The forms of the texts that are stored in English (``stored_texts.py``): each with ``%(name)s`` for its values.

The place ``num`` is a number, ``quoted`` a name in quotes. The places of ``TEXTS`` are any text, which is looked up as
a text itself; those of ``ANY`` any text that is not. Each other one is one word, such as an address. A pair is the text
for one, and for several.
"""

from __future__ import annotations

from typing import Final

from shared.languages.audit_forms import AUDIT
from shared.languages.check_forms import CHECKS, LOGINS, OPERATIONS
from shared.languages.delivery_forms import FETCHING, NOTICES, ROUTING
from shared.languages.field_forms import FIELDS
from shared.languages.file_forms import FILES, PLACES
from shared.languages.problem_forms import AROUND, CONNECTIONS, COUNTED, REASONS, SYSTEM
from shared.languages.session_forms import AT, FETCHES, FOLDERS, SENDS, TOKENS

TEXTS: Final = frozenset({"problem", "text", "why"})
ANY: Final = frozenset({"user", "written", "folder", "list"})
FORMS: Final[tuple[str | tuple[str, str], ...]] = (
    *NOTICES,
    *FETCHING,
    *ROUTING,
    *COUNTED,
    *SYSTEM,
    *REASONS,
    *CONNECTIONS,
    *FOLDERS,
    *FETCHES,
    *SENDS,
    *TOKENS,
    *LOGINS,
    *OPERATIONS,
    *FIELDS,
    *PLACES,
    *FILES,
    *CHECKS,
    *AUDIT,
    *AT,
    *AROUND,
)
"""All forms; of two that fit, the first one counts."""

"""The forms of the texts about an accounts file that is not YAML (``stored_forms.py`` has the rules).

Those of ruamel.yaml are its own words; one that it does not have here is shown in English.
"""

from __future__ import annotations

from typing import Final

from shared.languages.translation import marked

FILES: Final = (
    marked("not YAML: %(problem)s"),
    marked("anchors and aliases are not allowed: %(sign)s; write it out"),
    marked("at most %(count)s names and values are allowed"),
    marked("lists and mappings may be %(count)s deep at most"),
    marked("found character %(quoted)s that cannot start any token"),
    marked("could not find expected ':'"),
    marked("mapping keys are not allowed here"),
    marked("mapping values are not allowed here"),
    marked("found unexpected end of stream"),
    marked("found unexpected document separator"),
    marked("found unexpected ':'"),
    marked("found unknown escape character %(quoted)s"),
    marked("expected escape sequence of %(count)s hexdecimal numbers, but found %(quoted)s"),
    marked("expected alphabetic or numeric character, but found %(quoted)s"),
    marked("expected a digit or '.', but found %(quoted)s"),
    marked("expected ' ', but found %(quoted)s"),
    marked("expected a comment or a line break, but found %(quoted)s"),
    marked("expected chomping or indentation indicators, but found %(quoted)s"),
    marked("expected indentation indicator in the range 1-9, but found 0"),
    marked("expected the node content, but found %(quoted)s"),
    marked("expected <block end>, but found %(quoted)s"),
    marked("expected ',' or ']', but got %(quoted)s"),
    marked("expected ',' or '}', but got %(quoted)s"),
    marked("but found another document"),
    marked("found duplicate key %(quoted)s"),
    marked("found duplicate YAML directive"),
    marked("found incompatible YAML document (version 1.* is required)"),
    marked("found undefined tag handle %(quoted)s"),
    marked("found unhashable key"),
    marked("could not determine a constructor for the tag %(quoted)s"),
    marked("expected a mapping or list of mappings for merging, but found %(kind)s"),
    marked("expected a sequence node, but found %(kind)s"),
    marked("expected a mapping node, but found %(kind)s"),
    marked("failed to construct timestamp from %(quoted)s"),
    marked("unacceptable character %(character)s: special characters are not allowed"),
    marked("month must be in 1..12"),
    marked("day is out of range for month"),
    marked("hour must be in 0..23"),
    marked("minute must be in 0..59"),
    marked("second must be in 0..59"),
)
"""Errors of the text: services/admin/accounts/yaml_text.py, ruamel.yaml."""

PLACES: Final = (
    marked("line %(line)s, column %(column)s: %(problem)s"),
    marked("line %(line)s, column %(column)s"),
)
"""Where in the file an error is: services/admin/accounts/yaml_text.py, errors.py."""

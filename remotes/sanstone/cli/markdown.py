# SPDX-License-Identifier: Apache-2.0
"""The reference as a page of the documentation."""

from __future__ import annotations

from sanstone.cli.reference import default_of, groups, meaning, tables, where
from sanstone.settings import COMMON, DEFAULT_PATH, DRIVERS, Attribute, Scope

__all__ = ["markdown"]

_DRIVER = DRIVERS[0]

_PREFACE = f"""\
<!-- Made by "sanstone settings --markdown". Change the tables under remotes/sanstone/settings instead. -->

# Settings

Every attribute that Sanstone reads, where it may stand, and what holds when it is not set.
`sanstone settings` prints the same in a terminal, and `sanstone check TEMPLATE_FILE` holds a datastore's
template against it.

## Where an attribute stands

The last place in this list that names an attribute has the last word:

1. its default;
2. `{DEFAULT_PATH}` (or the file that the environment variable `SANSTONE_CONF` names): section
   `[sanstone]`, then the driver's section, such as `[{_DRIVER}]`, then the section of one system, such as
   `[{_DRIVER} "{_DRIVER}-a.example.com"]`, whose name is the value of MGMT (of HOST
   for `iscsi`);
3. the template of the datastore (`onedatastore update`);
4. the template of the image (`oneimage update`), for the attributes that say so.

- An empty value is none: the next more general place holds.
- An image belongs to its user, so only what can do no harm beyond that image may stand there. Any other
  attribute of the driver in an image's template is refused, not ignored. Images are asked only when a volume
  is made: what stands in their templates cannot prevent a disk from being detached or deleted.
- Passwords, keys and all else that gives access to a system stand in the file only: the template of a
  datastore can be read by every user.
- A value that is not allowed stops the action, and the message names the attribute, the value, its place and
  what is allowed. A name that looks like a misspelt attribute gives a warning in the log; in the file it is
  refused.
- The file has the INI form: `NAME = value` under `[section]`; a comment begins with `#` on a line of its own;
  a value stands on one line. When the file holds a password, let nobody but root and oneadmin read it.
"""


def markdown(driver: str | None = None) -> str:
    """Write the page, for all drivers or for one."""
    parts = [_PREFACE]
    for part in tables(driver):
        title = part.title if part.driver == COMMON else f"`{part.driver}`: {part.title}"
        parts.append(f"## {title}\n")
        for heading, attributes in groups(part.attributes):
            parts.append(f"### {heading}\n")
            rows = [_row(each, part.driver) for each in attributes]
            header = "| attribute | allowed | default | where | meaning |\n| --- | --- | --- | --- | --- |\n"
            parts.append(header + "".join(rows))
    return "\n".join(parts)


def _row(attribute: Attribute, driver: str) -> str:
    default = "**mandatory**" if attribute.is_mandatory else _default(attribute)
    place = _where(attribute, driver)
    cells = (f"`{attribute.name}`", attribute.kind.allowed, default, place, meaning(attribute, mark="`"))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _default(attribute: Attribute) -> str:
    text = default_of(attribute)
    return text if attribute.default is None else f"`{text}`"


def _where(attribute: Attribute, driver: str) -> str:
    words = where(attribute, driver)
    return words.replace("image", "**image**") if Scope.IMAGE in attribute.scopes else words

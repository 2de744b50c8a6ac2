"""The parameters of SQL text: names after a colon, outside of strings, quoted names and comments."""

from __future__ import annotations

import re

_TOKENS = re.compile(
    r"""
      (?P<skip> '(?:[^'\\]|\\.|'')*'      # a string
              | "(?:[^"\\]|\\.|"")*"
              | `(?:[^`]|``)*`            # a quoted name
              | --[^\n]*                  # comments
              | /\*.*?\*/
              | ::                        # a cast
      )
    | (?<![\w`\])"':]) : (?P<name> [A-Za-z_]\w*)
    """,
    re.VERBOSE | re.DOTALL,
)


def parameters(text: str) -> list[str]:
    """The names of the parameters in order, each once.

    A colon after a name, a bracket or a quote is a path into a value (``data:field``), not a parameter.
    """
    found = (match["name"] for match in _TOKENS.finditer(text))
    return list(dict.fromkeys(name for name in found if name))

"""Text that nobody vouches for, as HTML."""

import html
import unicodedata
from typing import Any

__all__ = ["text"]

KEPT = "\n\t\u200c\u200d"  # joiners belong to the spelling of some languages


class _Visible(dict):
    """For str.translate: characters that steer rather than show become \\x1b and the like."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        steers = not (char.isprintable() or char in KEPT or unicodedata.category(char) == "Zs")
        self[code] = ascii(char)[1:-1] if steers else char
        return self[code]


VISIBLE = _Visible()


def text(anything: Any) -> str:
    """Anything as text of a page, or as the value of an attribute in double quotes.

    Characters that steer, such as those that turn the direction of what follows, and halves of
    characters, which no file can hold, are shown as escapes.

    Examples
    --------
    >>> text("<b>\\x1b[31m")
    '&lt;b&gt;\\\\x1b[31m'
    """
    return html.escape(str(anything).translate(VISIBLE))

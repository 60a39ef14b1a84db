"""Text that comes from files and from users, made safe to show."""

from __future__ import annotations


def visible(text: str) -> str:
    r"""A text with every character that is not printable spelled out, as `repr` does.

    That holds control characters (a terminal obeys some), bidirectional overrides and zero-width
    characters (which make a text appear to be another), line ends, and what is no valid Unicode.

    >>> visible("cat\x1b[2J\n"), visible("a\u202eb\u200b"), visible("café 猫")
    ('cat\\x1b[2J\\n', 'a\\u202eb\\u200b', 'café 猫')
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

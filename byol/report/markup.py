"""HTML and SVG as text that is safe by how it is made: whatever is not `Html` already is escaped."""

import re
from html import escape
from typing import Any

from byol.errors import printable


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def element(name: str, *parts: Any, **attributes: Any) -> Html:
    """An element of parts: markup, or text of anybody's, which is escaped. None is left out.

    Attributes are named as in Python, such as `class_` and `aria_label`; None is left out there too.
    """
    words = (
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{''.join(words)}>{joined(*parts)}</{name}>")


def void(name: str, **attributes: Any) -> Html:
    """An element that has no parts and no end in HTML, such as an image."""
    return Html(element(name, **attributes).removesuffix(f"</{name}>"))


def joined(*parts: Any) -> Html:
    return Html(
        "".join(part if isinstance(part, Html) else _escaped(part) for part in parts if part is not None)
    )


def coded(words: str) -> Html:
    """Text in which flags and commands, such as `--epochs`, are set as code."""
    pieces = re.split(r"((?<![\w-])--[a-z][\w.-]*(?: [\d.]+)*)", words)
    return joined(*(element("code", piece) if place % 2 else piece for place, piece in enumerate(pieces)))


def table(heads: list[Any], rows: list[list[Any]], caption: str) -> Html:
    """A table whose first column names the rows; it scrolls by itself where it is wider than the page."""
    top = element("tr", *(element("th", head, scope="col") for head in heads))
    body = (
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:]))
        for row in rows
    )
    whole = element("table", element("caption", caption), element("thead", top), element("tbody", *body))
    return element("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption)


def section(title: str, *parts: Any) -> Html:
    return element("section", element("h2", title), *parts)


def folded(title: str, *parts: Any) -> Html:
    return element("details", element("summary", title), *parts)


def scrolled(inner: Html, name: str) -> Html:
    """What scrolls by itself where it is wider than the page, by keyboard too."""
    return element("div", inner, class_="scrolled", tabindex=0, role="region", aria_label=name)


def _escaped(text: Any) -> str:
    return escape(printable(str(text)))

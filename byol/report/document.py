"""What every page of the project is made in: colours, and a policy that lets only its own script run."""

import hashlib
from base64 import b64encode
from typing import Any

from byol.report.figures import DARK, LIGHT, STATIC
from byol.report.markup import Html, element, joined


def document(title: str, *parts: Any, style: str, script: str, beside: bool = False) -> str:
    """A whole HTML page; `beside` lets its script read scripts and images of ours that lie beside it.

    Whatever the names of files and classes say, nothing but the script runs, and nothing is loaded from afar.
    """
    allowed = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    pictures, scripts = ("'self' data:", " 'strict-dynamic'") if beside else ("data:", "")
    policy = f"default-src 'none'; img-src {pictures}; style-src 'unsafe-inline'; "
    policy += f"script-src 'sha256-{allowed}'{scripts}"
    light, dark = (";".join(f"--{name}:{value}" for name, value in one.items()) for one in (LIGHT, DARK))
    colours = f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    head = joined(
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Html('<meta name="color-scheme" content="light dark">'),
        element("title", title),
        element("style", Html(colours + style)),
    )
    body = joined(element("main", *parts), element("script", Html(script)))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def static(name: str) -> str:
    """A file that is part of the program: rules of style, or a script."""
    return (STATIC / name).read_text(encoding="utf-8")

"""Self-contained HTML pages: one file, opened from anywhere, that asks the network for nothing.

Guarantee: a page made here holds its styles, script, charts and images inside, and its Content-Security-Policy forbids
every request; text is escaped (Jinja2 autoescape); the file appears whole or not at all.
"""

from __future__ import annotations

from medvlp.html.page import data_uri, render_page, write_page

__all__ = ["data_uri", "render_page", "write_page"]

"""The one error that a user may see: what went wrong, where, and what to do next.

Guarantee: every mistake that a user can make ends in a `UserError` (or is recorded in a quarantine file in its form);
the command line prints its three parts and no traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """A mistake in input, configuration or environment that the user can mend.

    Args:
        what: One sentence that says what is wrong, with the value found.
        where: The file, folder, config key or row concerned.
        fix: The next step, an imperative sentence.
    """

    def __init__(self, what: str, where: object = "", fix: str = "") -> None:
        self.what = what
        self.where = str(where)
        self.fix = fix
        super().__init__(what, self.where, fix)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  next:  {self.fix}")
        return "\n".join(lines)


def nearest(name: str, allowed: list[str]) -> str:
    """Return `" Did you mean 'x'?"` for the closest allowed name, or an empty string."""
    import difflib

    found = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found else ""

"""Tables of reports, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """Return a Markdown table, with numbers to the right of its columns of texts."""
    lines = [f"| {' | '.join(headers)} |", f"|{'---|' * text_columns}{'---:|' * (len(headers) - text_columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])

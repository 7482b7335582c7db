"""The report's tables."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first cell names its row; rows that fail are marked."""

    def row(cells: Sequence[str]) -> str:
        first, *others = (escape(cell) for cell in cells)
        bad = ' class="bad"' if any(cell.startswith(("FAIL", "wrong")) for cell in cells) else ""
        return f'<tr{bad}><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in others) + "</tr>"

    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(row(cells) for cells in rows)
    return f'<div class="table" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

"""How a report is written down: a few kinds of blocks, and two small renderers for them, Markdown and HTML.

    text = paper.markdown("Title", [("", ["A sentence with ", paper.Code("code")]), ("Heading", [table])])

Every text is masked, loses its control characters and is escaped in the function that writes it, because missions,
models and workers may write anything. Headings of sections and heads of tables are the caller's own words.

What is not covered: anything that is not in a report.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import log

RULER = 5  # columns from one iteration number to the next
NAME = 24  # characters of an id beside the grid
CELL, PITCH, GLYPH = 12, 14, 7  # pixels: a cell of the grid, from one cell to the next, a character at most
BREAK = "\n"  # a part of a text that begins a new line, where the format has lines
STATES = {  # letter in the memory: name of its shape, sign in Markdown, meaning, and the shape on 12 x 12 pixels
    "m": ("met", "■", "met", '<rect width="12" height="12" rx="2" class="fill"/>'),
    "u": ("unmet", "□", "unmet, broken or timed out", '<rect {0}/><path d="M4 4L8 8M8 4L4 8"/>'),
    "r": ("regression", "!", "regression: it was met before", '<rect {1}/><path class="ink" d="M6 2.5V7M6 9V9.6"/>'),
    "f": ("flaky", "~", "flaky: differs on the same tree", '<rect {1}/><path class="ink" d="M2.5 7Q4.3 3 6 6T9.5 5"/>'),
    "t": ("tampered", "T", "tampered with", '<path class="fill" d="M6 0L12 6L6 12L0 6Z"/>'),
    "?": ("unjudged", "?", "not judged", '<rect {0}/><path d="M4.3 4.7A1.8 1.8 0 1 1 6.9 5.9Q6 6.4 6 7.2M6 9V9.6"/>'),
    "-": ("untouched", "-", "not tampered with", '<path d="M4 6H8"/>'),
    ".": ("unknown", "·", "not known", '<circle cx="6" cy="6" r="1" class="fill"/>'),
}
FRAMES = 'x=".5" y=".5" width="11" height="11" rx="2" class="pale"', 'width="12" height="12" rx="2" class="fill"'
MARKED = re.compile(r"[\\`*_{}\[\]<>#|~&!$^]")  # what can begin markup in Markdown
LINKED = re.compile(
    r"://|www\.|@|:[a-z+-][\w+-]*:", re.I
)  # what viewers make links and pictures of, even where escaped
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main class="{state}">
{body}
</main>
</body>
</html>
"""
STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1f2328; --soft: #59636e; --line: #d8dee4; --panel: #f6f8fa;
 --met: #2da44e; --unmet: #cf222e; --regression: #bc4c00; --flaky: #9a6700; --tampered: #8250df; --quiet: #8c959f }
@media screen and (prefers-color-scheme: dark) { :root { --back: #0d1117; --text: #e6edf3; --soft: #9198a1;
 --line: #30363d; --panel: #161b22; --met: #3fb950; --unmet: #f85149; --regression: #f0883e; --flaky: #d29922;
 --tampered: #a371f7; --quiet: #6e7681 } }
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1200px; margin: 0 auto; padding: 2rem 1.25rem 4rem; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line) }
p { margin: .6rem 0 }
h1 + p { padding: .7rem 1rem; border-radius: 6px; background: var(--panel); font-weight: 600;
 border-left: 4px solid var(--unmet) }
.done h1 + p { border-color: var(--met) }
h1 + p + p { color: var(--soft); font-size: .87rem }
.wide { overflow-x: auto; margin: .6rem 0 }
table { border-collapse: collapse; font-size: .87rem; overflow-wrap: break-word }
th, td { text-align: left; vertical-align: top; padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--line);
 max-width: 34rem; font-variant-numeric: tabular-nums }
th { color: var(--soft); white-space: nowrap }
code, pre, svg text { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace }
code, pre { font-size: .88em; background: var(--panel); border-radius: 4px; padding: .05em .3em }
pre { padding: .7rem 1rem; white-space: pre-wrap }
svg text { font-size: 11px; fill: var(--soft) }
path { fill: none; stroke: currentColor; stroke-width: 1.5; stroke-linecap: round }
.fill { fill: currentColor; stroke: none }
.pale { fill: currentColor; fill-opacity: .12; stroke: currentColor; stroke-opacity: .6 }
.ink { stroke: var(--back) }
.met { color: var(--met) } .unmet { color: var(--unmet) } .regression { color: var(--regression) }
.flaky { color: var(--flaky) } .tampered { color: var(--tampered) }
.unjudged, .untouched, .unknown { color: var(--quiet) }
.legend { color: var(--soft); font-size: .82rem } .legend span { margin-right: 1.2rem; white-space: nowrap }
@media print { * { print-color-adjust: exact } body { font-size: 10pt } table { font-size: 8pt }
 th, td { padding-right: .6rem } main { max-width: none; padding: 0 }
 .wide { overflow: visible } svg[role] { max-width: 100%; height: auto } tr, svg { break-inside: avoid }
 h2, h2 + p { break-after: avoid } }
"""


class Code(str):
    """Words that are shown in the type of a machine."""


class Sign(str):
    """A letter of STATES, shown as what stands for it."""


Text = str | int | Sequence[str]  # one part, or several in a row: plain text, Code, Sign, BREAK


class Commands(str):
    """Lines for a shell."""


@dataclass(frozen=True)
class Table:
    """Rows with as many cells as the head."""

    head: Sequence[str]
    rows: Sequence[Sequence[Text]]


@dataclass(frozen=True)
class Grid:
    """A letter of STATES for each name and iteration."""

    columns: range
    rows: Sequence[tuple[str, str]]


Block = Text | Commands | Table | Grid
Sections = Sequence[tuple[str, Sequence[Block]]]  # headings and what stands below them; the first has none


def markdown(title: str, sections: Sections) -> str:
    """A page in Markdown, without links, pictures and HTML."""
    parts = [f"# {_md(title)}"]
    for heading, blocks in sections:
        parts += [*([f"## {heading}"] if heading else []), *map(_md_block, blocks)]
    return "\n\n".join(parts) + "\n"


def html(title: str, sections: Sections, done: bool) -> str:
    """A page without scripts that needs nothing from elsewhere."""
    parts = [f"<h1>{_html(title)}</h1>"]
    for heading, blocks in sections:
        parts += [*([f"<h2>{heading}</h2>"] if heading else []), *map(_html_block, blocks)]
    state = "done" if done else "open"
    return PAGE.format(title=_html(title), style=STYLE, state=state, body="\n".join(parts))


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", log.printable(text))


def _parts(text: Text) -> Sequence[str]:
    """The parts of a text, without a break at its end."""
    parts = (text,) if isinstance(text, str) else (str(text),) if isinstance(text, int) else text
    return parts[:-1] if parts and parts[-1] == BREAK else parts


# --------------------------------------------------------------------------------------------------------
# Markdown
# --------------------------------------------------------------------------------------------------------


def _md(text: Text) -> str:
    return "".join(map(_md_part, _parts(text)))


def _md_part(part: str) -> str:
    if isinstance(part, Sign):
        return STATES[part][1]
    if part == BREAK:
        return "; "
    if isinstance(part, Code):  # no escape works in code, and parsers of tables disagree on a bar there
        return r"\|".join(_md_fenced(span) for span in _line(part).split("|"))
    words = _line(part).split(" ")
    return " ".join(_md_part(Code(word)) if LINKED.search(word) else MARKED.sub(r"\\\g<0>", word) for word in words)


def _md_fenced(text: str, least: int = 1, pad: str = "") -> str:
    """The text between more backticks than are in it."""
    fence = "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))
    pad = pad or " " * bool(text.strip("`") != text or re.fullmatch(" .*[^ ].* ", text))
    return f"{fence}{pad}{text}{pad}{fence}" if text else ""


def _md_block(block: Block) -> str:
    if isinstance(block, Table):
        cells = ([_md(cell) or " " for cell in row] for row in block.rows)
        rows = [block.head, ["---"] * len(block.head), *cells]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)
    if isinstance(block, Commands):
        return _md_fenced(log.printable(block), 3, "\n")
    return _md_fenced(_md_grid(block), 3, "\n") if isinstance(block, Grid) else _md(block)


def _md_grid(grid: Grid) -> str:
    names = [_line(name)[:NAME] for name, _ in grid.rows]
    width = max(map(len, names)) + 2
    ruler = "".join(f"{i:<{RULER}}" for i in grid.columns if i % RULER == 0)
    lines = [" " * (width + -grid.columns[0] % RULER) + ruler.rstrip()]
    for name, (_, letters) in zip(names, grid.rows, strict=True):
        lines.append(f"{name:{width}}{''.join(STATES[letter][1] for letter in letters)}")
    return "\n".join([*lines, "", *(f"{sign} {meaning}" for _, sign, meaning, _ in STATES.values())])


# --------------------------------------------------------------------------------------------------------
# HTML
# --------------------------------------------------------------------------------------------------------


def _html(text: Text) -> str:
    return "".join(map(_html_part, _parts(text)))


def _html_part(part: str) -> str:
    if isinstance(part, Sign):
        use = f'<use href="#{STATES[part][0]}"/>'
        return f'<svg width="{CELL}" height="{CELL}" aria-hidden="true">{use}</svg>'
    if part == BREAK:
        return "<br/>"
    shown = escape(_line(part))
    return f"<code>{shown}</code>" if isinstance(part, Code) and shown else shown


def _html_block(block: Block) -> str:
    if isinstance(block, Table):
        head = "".join(f'<th scope="col">{name}</th>' for name in block.head)
        rows = "\n".join(f"<tr>{''.join(f'<td>{_html(cell)}</td>' for cell in row)}</tr>" for row in block.rows)
        table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
        return f'<div class="wide" tabindex="0">{table}</div>'
    if isinstance(block, Commands):
        return f"<pre>{escape(log.printable(block))}</pre>"
    return _html_grid(block) if isinstance(block, Grid) else f"<p>{_html(block)}</p>"


def _html_grid(grid: Grid) -> str:
    left = GLYPH * (1 + min(NAME, max(len(name) for name, _ in grid.rows)))
    width, height = left + PITCH * len(grid.columns) + GLYPH, PITCH * (len(grid.rows) + 1)
    shapes = "".join(f'<g id="{id}" class="{id}">{shape.format(*FRAMES)}</g>' for id, _, _, shape in STATES.values())
    ruler = "".join(
        f'<text x="{left + PITCH * n + CELL // 2}" y="10" text-anchor="middle">{i}</text>'
        for n, i in enumerate(grid.columns)
        if i % RULER == 0
    )
    rows = "\n".join(
        f'<g transform="translate({left} {PITCH * n})">{_html_row(name, letters, grid.columns)}</g>'
        for n, (name, letters) in enumerate(grid.rows, 1)
    )
    legend = "".join(f"<span>{_html((Sign(letter), ' ', state[2]))}</span>" for letter, state in STATES.items())
    return (
        f'<div class="wide" tabindex="0">\n<svg role="img" viewBox="0 0 {width} {height}" width="{width}">'
        f"<title>The verdict of each criterion at each iteration</title>\n<defs>{shapes}</defs>\n{ruler}\n{rows}\n"
        f'</svg></div>\n<p class="legend">{legend}</p>'
    )


def _html_row(name: str, letters: str, columns: range) -> str:
    label, short = _html(name), _html(_line(name)[:NAME])
    names = [STATES[letter][0] for letter in letters]
    cells = (
        f'<use href="#{state}" x="{PITCH * n}"><title>{label}, iteration {i}: {state}</title></use>'
        for n, (i, state) in enumerate(zip(columns, names, strict=True))
    )
    return f'<text x="-{GLYPH}" y="10" text-anchor="end">{short}</text>{"".join(cells)}'

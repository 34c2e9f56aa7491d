"""A picture of explanations as one HTML file."""

from __future__ import annotations

import base64
import html
import io
import math

import numpy as np

from cifarkit.plots.sheet import Pixels, Row, Sheet


def page_of(sheet: Sheet) -> str:
    """Write the sheet as one HTML file that needs no other."""
    side = max(96, sheet.pictures.shape[2] * math.ceil(96 / sheet.pictures.shape[2]))
    heads = "".join(f"<th>{'<br>'.join(map(html.escape, lines))}</th>" for lines in sheet.captions)
    body = [f"<tr><th>image</th>{''.join(_picture(tile, 'image') for tile in sheet.pictures)}<td></td></tr>"]
    for row in sheet.rows:
        name, *more = map(html.escape, row.lines)
        cells = "".join(_picture(tile, row.lines[0]) for tile in row.tiles)
        body.append(f"<tr><th>{'<br>'.join([name, *more])}</th>{cells}<td class=bar>{_bar(row)}</td></tr>")
    title = html.escape(sheet.title or "Explanations")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title><style>
body {{ font: 14px/1.4 sans-serif; margin: 2em; color: #222; background: #fff }}
table {{ border-collapse: collapse }} td, th {{ padding: 4px; font-weight: normal; text-align: left }}
img {{ width: {side}px; image-rendering: pixelated; border: 1px solid #ccc; display: block }}
.bar {{ font-size: 12px }}
.bar i {{ display: block; width: 14px; height: {side // 2}px }}
</style></head><body><h1>{title}</h1><table><thead><tr><th></th>{heads}<th></th></tr></thead>
<tbody>
{chr(10).join(body)}
</tbody></table><p>{html.escape(sheet.note)}</p></body></html>
"""


def _bar(row: Row) -> str:
    """Write the scale of a row, nothing where each panel has its own."""
    if row.limit is None:
        return ""
    above, below = row.colours
    shades, low = (f"{above}, #fff", "0") if below is None else (f"{above}, #fff, {below}", f"&minus;{row.limit:.2g}")
    return f'{row.limit:.2g}<i style="background: linear-gradient({shades})"></i>{low}'


def _picture(tile: Pixels, alternative: str) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(tile)).save(file, format="PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<td><img alt="{html.escape(alternative)}" src="data:image/png;base64,{data}"></td>'

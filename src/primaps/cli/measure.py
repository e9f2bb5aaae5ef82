"""The command measure: areas, regions and objects of label maps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from annotated_types import Interval
from rich.table import Table

from primaps.cli.app import EXCHANGE, app, command, running
from primaps.cli.console import cell, note, show
from primaps.cli.options import ClassesOf


@command(app, rich_help_panel=EXCHANGE)
def measure(
    result: Annotated[
        Path,
        typer.Argument(metavar="RESULT", help="Folder that `predict` wrote, or a label map."),
    ],
    out: Annotated[
        Path | None, "Table to write, one row per image and class: .csv, .json or .parquet."
    ] = None,
    objects: Annotated[
        Path | None, "Table to write, one row per object: .csv, .json or .parquet."
    ] = None,
    only: Annotated[
        list[str] | None, "Class whose objects are listed. May be repeated. [default: all]"
    ] = None,
    min_area: Annotated[
        Annotated[int, Interval(ge=0, le=10**9)], "Minimum number of pixels of an object."
    ] = 0,
    neck: Annotated[
        Annotated[float, Interval(ge=0, lt=1)],
        "Split touching objects where the width between them is below this fraction of the width "
        "of the smaller one. 0 does not split.",
    ] = 0.75,
    resolution: Annotated[
        str | None,
        "Side of a pixel with its unit (um, mm, cm, m), such as 0.25um. [default: that of "
        "georeferenced label maps]",
    ] = None,
    classes: ClassesOf = None,
) -> None:
    """Measure the area and the number of regions of each class, and list objects."""
    with running() as progress:
        from primaps.measure import (
            check_table,
            measure_classes,
            measure_objects,
            summarize,
            write_table,
        )

        for path in filter(None, (out, objects)):
            check_table(path)  # before the work
        rows = measure_classes(result, classes=classes, resolution=resolution, progress=progress)
        listed = []
        if objects:
            listed = measure_objects(
                result, only=only or [], min_area=min_area, neck=neck, classes=classes,
                resolution=resolution, progress=progress,
            )  # fmt: skip
        totals = summarize(rows)
        area = next((name for name in totals[0] if name.startswith("area_")), None)
        unit = area.removeprefix("area_").replace("2", "\u00b2") if area else ""
        table = Table(
            "value", "class", "images", "share", "regions", *([f"area, {unit}"] if area else [])
        )
        for row in totals:
            number = row[area] if area else None
            table.add_row(
                str(row["value"]), cell(row["class"]), f"{row['images']:,}",
                f"{100 * float(row['share'] or 0):.1f} %", f"{row['regions']:,}",
                *(["-" if number is None else f"{number:,.6g}"] if area else []),
            )  # fmt: skip
        show(table)
        if out:
            write_table(rows, out)
            note(f"{len(rows)} rows: {out}")
        if objects:
            write_table(listed, objects)
            note(f"{len(listed)} objects: {objects}")

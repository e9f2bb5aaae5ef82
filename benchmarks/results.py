"""The tables of docs/results: ``primaps reproduce`` on labeled folders, side by side.

    python benchmarks/results.py --data ROOT --out OUT [--tables table1 ...] [--sets coco200 ...]
    python benchmarks/results.py --out OUT --publish docs/results

ROOT holds ``camvid``, ``coco200`` and ``aerial260``, each with images, labels and classes.json. A
run that was stopped goes on. Reports are in OUT/SET/TABLE/report.md; prints Markdown with accuracy
and mean IoU in %, mean ± standard deviation of the seeds. --publish copies the reports that are
there, without images, which are not ours, and without the scores of single images.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

from rich.console import Console

from primaps.reproduction import Reproduction, reproduce
from primaps.reproduction.report import spread
from primaps.utils.files import cache_dir
from primaps.utils.progress import ProgressDisplay

SETS = ("coco200", "aerial260", "camvid")
TABLES = ("table1", "table4a", "table4b", "table5", "figure7", "projections")


def run(name: str, reproduction: Reproduction, note: Console) -> dict[str, str]:
    """Accuracy / mean IoU of each row of a table on a folder."""
    with ProgressDisplay(note) as progress:
        report = reproduce(name, reproduction, progress=progress, note=note.print)
    rows = json.loads(report.with_name("report.json").read_text("utf-8"))["rows"]
    return {
        row["label"]: " / ".join(
            spread([100 * each[figure] for each in row["runs"]])
            for figure in ("accuracy", "mean_iou")
        )
        for row in rows
        if row["runs"]
    }


def publish(out: Path, target: Path) -> None:
    """Copy the reports of OUT/SET/TABLE to another folder."""
    for report in sorted(out.glob("*/*/report.md")):
        folder = target / report.parent.relative_to(out)
        folder.mkdir(parents=True, exist_ok=True)
        text = re.sub(r"!\[examples.*\n\n.*\n\n", "", report.read_text("utf-8"))
        (folder / "report.md").write_text(text, "utf-8")
        about = json.loads(report.with_name("report.json").read_text("utf-8"))
        for run in (run for row in about["rows"] for run in row["runs"]):
            run.pop("by_image", None)
        (folder / "report.json").write_text(json.dumps(about), "utf-8")
        for path in (*report.parent.glob("*.png"), *report.parent.glob("*.txt")):
            if not path.name.startswith("examples"):
                shutil.copyfile(path, folder / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tables", nargs="+", default=list(TABLES))
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--protocol", default="paper", choices=("paper", "program"))
    parser.add_argument("--constant-momentum", action="store_true", help="as in Eq. 11")
    parser.add_argument("--cache", type=Path, default=cache_dir() / "features")
    parser.add_argument("--publish", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.publish:
        publish(arguments.out, arguments.publish)
        return
    if arguments.data is None:
        parser.error("--data is needed to run")
    options = {"momentum_ramp": False} if arguments.constant_momentum else {}
    for name in arguments.tables:
        found = {}
        for data in arguments.sets:
            reproduction = Reproduction(
                arguments.out / data, {"folder": arguments.data / data}, "folder",
                seeds=tuple(arguments.seeds), options=options, protocol=arguments.protocol,
                cache=arguments.cache,
            )  # fmt: skip
            found[data] = run(name, reproduction, Console(stderr=True))
        print(f"\n{name}\n\n| | {' | '.join(found)} |\n|{'---|' * (len(found) + 1)}")
        for label in dict.fromkeys(label for rows in found.values() for label in rows):
            print(f"| {label} | {' | '.join(rows.get(label, '') for rows in found.values())} |")


if __name__ == "__main__":
    main()

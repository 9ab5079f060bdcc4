"""`python -m benchmarks.table`: writes the kept results into the README, a table for each machine."""

import json
from dataclasses import replace

from benchmarks.harness import RESULTS, ROOT, Row, table

README = ROOT / "README.md"
UNCOMMITTED = " †"
LEGEND = "† measured with changes that no commit holds.\n"
START, END = "<!-- benchmarks: written by python -m benchmarks.table -->\n", "<!-- end of benchmarks -->\n"


def rendered() -> str:
    """Every kept result, those of one machine together; rows are marked whose code no commit holds."""
    tables: dict[str, list[Row]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        where = result["machine"]
        device = where["gpu"] or f"{where['cpu']}, {where['cores']} cores"
        mark = UNCOMMITTED if where["commit"].endswith("+") else ""
        rows = tables.setdefault(f"{device}; torch {where['versions']['torch']}", [])
        rows += [replace(row, what=row.what + mark) for row in (Row(**row) for row in result["rows"])]
    parts = [f"**{device}**\n\n{table(rows)}\n" for device, rows in tables.items()]
    return "\n".join(parts + [LEGEND] * any(UNCOMMITTED in part for part in parts))


def main() -> None:
    """Replaces what stands between the two marks."""
    before, _, rest = README.read_text().partition(START)
    after = rest.partition(END)[2]
    README.write_text(f"{before}{START}\n{rendered()}\n{END}{after}")


if __name__ == "__main__":
    main()

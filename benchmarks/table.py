"""`python -m benchmarks.table`: writes the kept results into the README, a table for each machine."""

import json
from pathlib import Path

from benchmarks.harness import RESULTS, Row, table

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- benchmarks: written by python -m benchmarks.table -->\n", "<!-- end of benchmarks -->\n"


def rendered() -> str:
    """Every kept result, those of one machine together."""
    tables: dict[str, list[Row]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        where = result["machine"]
        device = where["gpu"] or f"{where['cpu']}, {where['cores']} cores"
        tables.setdefault(f"{device}; torch {where['versions']['torch']}", []).extend(
            Row(**row) for row in result["rows"]
        )
    return "\n".join(f"**{device}**\n\n{table(rows)}\n" for device, rows in tables.items())


def main() -> None:
    """Replaces what stands between the two marks."""
    before, _, rest = README.read_text().partition(START)
    after = rest.partition(END)[2]
    README.write_text(f"{before}{START}\n{rendered()}\n{END}{after}")


if __name__ == "__main__":
    main()

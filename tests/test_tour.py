"""The notebook docs/tour.ipynb runs from its first to its last cell, and is kept without outputs."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from programs import ROOT

TOUR = ROOT / "docs" / "tour.ipynb"


def test_it_is_kept_without_outputs() -> None:
    cells = [cell for cell in nbformat.read(TOUR, 4).cells if cell.cell_type == "code"]
    assert cells
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_it_runs_and_ends_with_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # without it jupyter_core warns
    tour = nbformat.read(TOUR, 4)
    (parameters,) = (cell for cell in tour.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = "crops, distill_steps, steps, int8_steps = 1, 1, 1, 4"
    NotebookClient(tour, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.get("text", "") for cell in tour.cells for output in cell.get("outputs", ()))
    for row in ("GDN, float", "gate_mlp, float", "gate_mlp, int8", "JPEG", "Arm Ethos-U (Vela)"):
        assert row in printed
    pictures = [each for cell in tour.cells for each in cell.get("outputs", ()) if "image/png" in each.get("data", {})]
    assert len(pictures) == 3

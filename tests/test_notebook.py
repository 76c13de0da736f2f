"""The notebook: valid, without stored outputs, and its cells run from top to bottom."""

import os

import nbclient
import nbformat
import pytest
from conftest import ROOT

NOTEBOOK = ROOT / "notebooks/deeplab_colab.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_valid_and_stores_no_outputs(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 10
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    """In a kernel of its own, as a reader's: it trains, measures, segments and draws."""
    source = str(ROOT / "src")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("XLA_FLAGS", "")  # compiled as for a reader
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=1200, resources=where).execute()
    said = {
        cell.id: "".join(o.text for o in cell.outputs if o.output_type == "stream")
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    drawn = {
        cell.id
        for cell in notebook.cells
        if cell.cell_type == "code" and any("image/png" in o.get("data", {}) for o in cell.outputs)
    }
    assert {"scenes", "atrous", "train", "segment", "stride", "crf", "beliefs", "field"} <= drawn
    mean = float(said["measure"].split("mean")[1].split("%")[0])
    assert mean > 100 / 9  # what one class everywhere would have at best
    assert (tmp_path / "embedded.safetensors").is_file()

"""The notebook: a valid file without outputs, and it runs from its top to its end."""

import os

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

PATH = ROOT / "notebooks" / "deeplab_colab.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=nbformat.NO_CONVERT)


def test_it_is_valid_and_stores_no_outputs(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    assert PATH.stat().st_size < 40_000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's packages
def test_it_runs_to_its_end(notebook, tmp_path):
    client = NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=os.environ | {"XLA_FLAGS": ""})  # an exception in a cell is one here
    code = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
    assert all(cell.execution_count for cell in code.values())

    def said(name):
        return "".join(out.text for out in code[name].outputs if out.output_type == "stream")

    assert "largest difference where both answer: 0.0" in said("atrous")
    mean = said("measure").splitlines()[-1].split()
    assert mean[0] == "mean"
    assert float(mean[1]) > 15  # all background: 7
    for name in ("scenes", "segment", "stride", "crf", "beliefs", "field"):
        assert any("image/png" in out.get("data", {}) for out in code[name].outputs), name

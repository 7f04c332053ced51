"""The notebook of examples/ is run again, and prints its stored output."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent.parent / "examples" / "walkthrough.ipynb"
_NUMBER = re.compile(r"[-+]?\d+\.\d+")


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """The output of each code cell: its text, and the types of other output; standard error is ignored."""
    return [
        "".join(
            output.text if output.output_type == "stream" else output.output_type
            for output in cell.outputs
            if output.get("name") != "stderr"
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.real
def test_the_notebook_prints_what_stands_in_it(real_base_path: Path, real_encoder_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    committed = printed(notebook)
    assert all(committed), "every cell shows something"
    NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    for before, now in zip(committed, printed(notebook), strict=True):
        assert _NUMBER.sub("N", now) == _NUMBER.sub("N", before)
        numbers = [[float(found) for found in _NUMBER.findall(text)] for text in (now, before)]
        assert numbers[0] == pytest.approx(numbers[1], abs=0.03)

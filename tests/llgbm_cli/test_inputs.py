from pathlib import Path

import pytest

from llgbm.errors import PretrainedNotFoundError
from llgbm.pretrained.find import Progress
from llgbm_cli import inputs


@pytest.mark.parametrize("terminal", [True, False])
def test_weights_that_are_fetched_have_a_bar_on_a_terminal_and_a_line_for_each_stage_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, terminal: bool
) -> None:
    def slow(name: str, *, progress: Progress) -> Path:
        for done in (0, 3_000_000):
            progress("downloading", done, 6_000_000)
        progress("converting", 0, None)
        return tmp_path

    monkeypatch.setattr(inputs, "resolve_pretrained", slow)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    assert inputs.fetch("someone/base") == tmp_path
    printed = capsys.readouterr()
    assert printed.out == ""
    if terminal:
        assert "someone/base: converting" in printed.err
    else:
        assert printed.err == "someone/base: downloading\nsomeone/base: converting\n"


def test_weights_that_are_here_draw_nothing_and_others_are_an_error(
    capsys: pytest.CaptureFixture[str], tiny_base_path: Path, tmp_path: Path
) -> None:
    assert inputs.fetch(str(tiny_base_path)) == tiny_base_path
    with pytest.raises(PretrainedNotFoundError):
        inputs.fetch(str(tmp_path / "nothing"))
    assert capsys.readouterr() == ("", "")

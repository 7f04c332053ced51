"""What a wheel of this project brings: an installed service has to find its page and its generator in it."""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent


def test_a_wheel_brings_the_generator_the_page_and_the_configurations(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with ZipFile(wheel) as archive:
        archive.extractall(installed)
    shipped = ROOT / "checkpoints" / "qwen2.5-0.5b"
    asked = "import service.settings as s; print(s.__file__, s.DEFAULT_CHECKPOINT, sep='\\n')"
    found = subprocess.run(
        [sys.executable, "-c", asked],
        cwd=installed,
        env={"PYTHONPATH": "."},
        check=True,
        capture_output=True,
        text=True,
    )
    module, checkpoint = map(Path, found.stdout.splitlines())
    assert module.resolve() == installed / "service" / "settings.py"
    assert checkpoint.resolve() == installed / "service" / "checkpoints" / "qwen2.5-0.5b"
    for name in ("generator.safetensors", "manifest.json"):
        assert (installed / checkpoint / name).read_bytes() == (shipped / name).read_bytes()
    for name in (
        "service/static/index.html",
        "training/configs/recipe.yaml",
        "training/tasks/wordings.json",
        "llgbm/py.typed",
    ):
        assert (installed / name).read_bytes() == (ROOT / name).read_bytes()
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {
        "llgbm", "service", "training",
    }  # fmt: skip

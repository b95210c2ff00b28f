"""24 recorded steps of the published implementation, through the project's own parts."""

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, HERE / "replay.py", folder], capture_output=True, text=True, check=False)


def test_the_recorded_run_is_reproduced():
    found = run(HERE / "trace")
    errors = json.loads(found.stdout)
    assert found.returncode == 0, errors
    assert errors["loss"] < 1e-6
    assert errors["grad_norm"] < 1e-6
    assert errors["weights"] < 1e-5
    assert set(errors) == {"loss", "grad_norm", "lr", "weight_decay", "momentum", "weights"}


def test_a_run_that_differs_is_noticed(tmp_path):
    for name in ("start.pth.tar", "end.pth.tar", "batches.npz"):
        (tmp_path / name).symlink_to(HERE / "trace" / name)
    trace = json.loads((HERE / "trace" / "trace.json").read_text())
    trace["config"]["ema"] = [0.99, 1.0]
    (tmp_path / "trace.json").write_text(json.dumps(trace))
    found = run(tmp_path)
    assert found.returncode == 1
    assert json.loads(found.stdout)["momentum"] > 1e-3

"""The log of a run, as a crash may leave it, and what it says of memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from openjepa.training.metrics import MetricsLog, read_rows


def test_a_spoilt_line_costs_no_other(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 0, "loss": 1}\n{"step": 1, "lo\xff\n{"step": 2, "loss": 3}\n{"step": 3, "l', "latin-1")
    assert [row["step"] for row in read_rows(log)] == [0, 2]
    MetricsLog(log, start=3).close()
    assert [row["step"] for row in read_rows(log)] == [0, 2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_told_with_the_file_and_what_to_do(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", start=0)
    log.close()
    log._file = open("/dev/full", "w")  # noqa: SIM115 - closed by the log
    with pytest.raises(OSError, match=r"No space left.*openjepa resume .*metrics.jsonl") as told:
        log.write({"step": 0})
    assert told.value.filename == str(tmp_path / "metrics.jsonl")
    log.close()


def test_the_peak_is_the_process_own_and_not_what_began_it_held():
    tell = "from openjepa.training.metrics import peak_memory; print(peak_memory(torch.device('cpu')))"
    ask, hold = f"import torch; {tell}", "import subprocess, sys, torch; held = torch.ones(2**27)"  # 512 MiB
    grown, child = f"{hold}; {tell}", f"{hold}; subprocess.run([sys.executable, '-c', {ask!r}])"
    alone, large, inside = (
        int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for code in (ask, grown, child)
    )
    assert large > alone + 2**29 - 2**26
    assert abs(inside - alone) < 2**26


def test_where_the_system_does_not_tell_the_peak_is_nothing():
    code = """if True:
        import sys
        sys.modules["resource"] = None  # as on Windows
        import torch
        from openjepa.training import metrics
        known = metrics.Path
        metrics.Path = lambda path: known("nowhere")  # nor is there /proc
        print(metrics.peak_memory(torch.device("cpu")))
    """
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "0\n"

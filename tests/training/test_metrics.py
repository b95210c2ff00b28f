"""The log of a run, as a crash may leave it, and what it says of memory."""

import subprocess
import sys

from openjepa.training.metrics import Meter, MetricsLog, read_rows


def test_a_spoilt_line_costs_no_other(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 0, "loss": 1}\n{"step": 1, "lo\xff\n{"step": 2, "loss": 3}\n{"step": 3, "l', "latin-1")
    assert [row["step"] for row in read_rows(log)] == [0, 2]
    MetricsLog(log, start=3).close()
    assert [row["step"] for row in read_rows(log)] == [0, 2]


def test_off_a_terminal_a_long_run_says_how_far_it_is_twenty_times_at_most(capsys, monkeypatch):
    def said(each: float, start: int = 0) -> list[str]:
        now = 0.0
        monkeypatch.setattr("time.monotonic", lambda: now)
        with Meter(1000, start, show=True) as meter:
            for done in range(start + 1, 1001):
                now += each
                meter.step(done)
                if done % 10 == 0:
                    meter.advance({"loss": 0.5, "images_per_s": 640.4, "data_wait": 0.0}, done=done)
        return capsys.readouterr().err.splitlines()

    assert said(0.05) == []
    told = said(2.0)
    assert len(told) == 19
    assert told[0] == "openjepa: step 50 of 1,000: loss 0.5000, 640 images/s, 0:31:40 left"
    assert [line.split(":")[1] for line in said(2.0, 900)] == [" step 950 of 1,000"]


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

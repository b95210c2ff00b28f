"""The log of a run, as a crash may leave it."""

from openjepa.training.metrics import MetricsLog, read_rows


def test_a_spoilt_line_costs_no_other(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 0, "loss": 1}\n{"step": 1, "lo\xff\n{"step": 2, "loss": 3}\n{"step": 3, "l', "latin-1")
    assert [row["step"] for row in read_rows(log)] == [0, 2]
    MetricsLog(log, start=3).close()
    assert [row["step"] for row in read_rows(log)] == [0, 2]

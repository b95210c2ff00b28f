"""What several processes agree on."""

import os
import subprocess
import sys

WAITING = """
import sys
import time
from pathlib import Path
import torch.distributed as dist
import torch.testing._internal.distributed.fake_pg  # makes the backend known
from openjepa.training.distributed import join

folder, rank = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("fake", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
processes = join("cpu")
processes.wait()  # for nobody
if processes.first:
    time.sleep(0.5)
    (folder / "planned").touch()
processes.wait(patiently=True)
assert (folder / "planned").exists()
"""


def test_a_patient_wait_is_of_a_group_of_its_own_whatever_the_others_are(tmp_path):
    """NCCL's would end a plan of more than ten minutes; here the default group is one that waits for nobody."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WAITING, str(tmp_path), str(rank)],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in started:
        _, said = process.communicate(timeout=100)
        assert process.returncode == 0, said[-2000:]

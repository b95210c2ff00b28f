"""How long it takes to open a folder of very many files, first and again, and how much memory.

    python benchmarks/indexing.py FOLDER [--files 1000 10000 100000 1000000] [--json FILE]

Small files (PNG, 28 px) are generated below FOLDER, a thousand to a folder, and left there; lists go to a cache of
their own. Every look is a process of its own, and memory is what it grew by at its peak. The first look finds the
files in the system's memory, where writing them has left them.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

HEADING = ("files", "open, s", "fingerprint, s", "MiB", "again: open, s", "fingerprint, s", "MiB")
LOOK = """
import json, resource, sys, time
from openjepa.data.sources import open_data
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
begun, least = time.perf_counter(), peak()
source = open_data(sys.argv[1]).train
opened = time.perf_counter()
source.fingerprint
print(json.dumps({"files": len(source), "open": opened - begun, "fingerprint": time.perf_counter() - opened,
                  "MiB": peak() - least}))
"""


def grown(folder: Path, files: int) -> Path:
    """A folder of so many small images."""
    place = folder / str(files)
    content = io.BytesIO()
    Image.new("L", (28, 28), 7).save(content, "PNG")
    for group in range(0, files, 1000):
        below = place / f"class{group // 1000:04d}"
        if not below.exists():
            below.mkdir(parents=True)
            for number in range(group, min(group + 1000, files)):
                (below / f"{number:07d}.png").write_bytes(content.getvalue())
    return place


def look(place: Path, cache: str) -> dict[str, float]:
    """What one process finds."""
    command = [sys.executable, "-c", LOOK, str(place)]
    told = subprocess.run(command, env={**os.environ, "OPENJEPA_CACHE": cache}, capture_output=True, check=True)
    return json.loads(told.stdout)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    print(f"| {' | '.join(HEADING)} |\n|{'---|' * len(HEADING)}")
    for files in options.files:
        place = grown(options.folder, files)
        time.sleep(3)  # a folder that has just changed is not remembered
        with tempfile.TemporaryDirectory() as cache:
            first, again = look(place, cache), look(place, cache)
        if {first["files"], again["files"]} != {files}:
            raise SystemExit(f"{place} is not whole: remove it, and it is made again")
        results.append({"files": files, "first": first, "again": again})
        cells = [f"{found[what]:.3g}" for found in (first, again) for what in ("open", "fingerprint", "MiB")]
        print(f"| {files:,} | {' | '.join(cells)} |", flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

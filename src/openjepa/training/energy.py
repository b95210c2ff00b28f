"""The energy that the machine itself counts: processor packages (RAPL: Intel, AMD), and the board of an NVIDIA GPU.

What is not exposed is not guessed.
"""

from collections.abc import Callable
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules since it was made, by every counter that can be read; ``covers`` names them, and is empty without any.

    Of several GPUs the process' own is counted. The counters are of the whole machine: other programs' share is in
    them. A package's counter starts again after some minutes at full load, so :meth:`joules` has to be called at least
    that often.
    """

    def __init__(self, device: torch.device, *, powercap: Path = POWERCAP) -> None:
        # The packages; their parts (names with a second colon) are in them, and they in the platform (``psys``).
        zones = sorted(zone for zone in powercap.glob("*-rapl:*") if zone.name.count(":") == 1 and _is_package(zone))
        self._packages = {zone: value for zone in zones if (value := _microjoules(zone)) is not None}
        self._board = _board(device) if device.type == "cuda" else None
        self._board_start = self._board() if self._board else 0.0
        self._spent = 0.0
        self.covers = ", ".join(
            [f"{len(self._packages)} processor package(s)"] * bool(self._packages) + ["the GPU"] * bool(self._board)
        )

    def joules(self) -> float | None:
        """The energy so far; None where no counter can be read."""
        if not self.covers:
            return None
        for zone, before in self._packages.items():
            now = _microjoules(zone) or before
            around = int((zone / "max_energy_range_uj").read_text()) if now < before else 0
            self._spent += (now - before + around) / 1e6
            self._packages[zone] = now
        return self._spent + (self._board() - self._board_start if self._board else 0.0)


def _is_package(zone: Path) -> bool:
    try:
        return (zone / "name").read_text().startswith("package")
    except OSError:
        return True


def _microjoules(zone: Path) -> int | None:
    try:
        return int((zone / "energy_uj").read_text())
    except (OSError, ValueError):  # often readable by root alone
        return None


def _board(device: torch.device) -> Callable[[], float] | None:
    """A function that reads the GPU's counter, in joules."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        # By its own name: numbers depend on which boards the process is shown.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3

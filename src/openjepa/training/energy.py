"""The energy that the machine itself counts: processor packages (RAPL: Intel, AMD), and the board of an NVIDIA GPU.

What is not exposed is not guessed.
"""

from collections.abc import Callable
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules since it was made, by every counter that can be read; ``covers`` names them, and is empty without any, and
    from when on one of them cannot be read any more.

    Of several GPUs the process' own is counted. The counters are of the whole machine: other programs' share is in
    them. A package's counter starts again after some minutes at full load, so :meth:`joules` has to be called at least
    that often.
    """

    def __init__(self, device: torch.device, *, powercap: Path = POWERCAP) -> None:
        # The packages; their parts (names with a second colon) are in them, and they in the platform (``psys``).
        zones = sorted(zone for zone in powercap.glob("*-rapl:*") if zone.name.count(":") == 1 and _is_package(zone))
        self._packages = {zone: value for zone in zones if (value := _microjoules(zone)) is not None}
        self._board = _board(device) if device.type == "cuda" else None
        start = self._board() if self._board else None
        self._board, self._board_start = (None, 0.0) if start is None else (self._board, start)
        self._spent = 0.0
        self.covers = ", ".join(
            [f"{len(self._packages)} processor package(s)"] * bool(self._packages) + ["the GPU"] * bool(self._board)
        )

    def joules(self) -> float | None:
        """The energy so far; None where no counter can be read, or one could not be and what it counted is lost."""
        if not self.covers:
            return None
        for zone, before in self._packages.items():
            now = _microjoules(zone)
            around = 0 if now is None or now >= before else _microjoules(zone, "max_energy_range_uj")
            if now is None or around is None:
                self.covers = ""
                return None
            self._spent += (now - before + around) / 1e6
            self._packages[zone] = now
        board = self._board() if self._board else 0.0
        if board is None:
            self.covers = ""
            return None
        return self._spent + board - self._board_start


def _is_package(zone: Path) -> bool:
    try:
        return (zone / "name").read_text().startswith("package")
    except OSError:
        return True


def _microjoules(zone: Path, name: str = "energy_uj") -> int | None:
    try:
        return int((zone / name).read_text())
    except (OSError, ValueError):  # often readable by root alone
        return None


def _board(device: torch.device) -> Callable[[], float | None] | None:
    """A function that reads the GPU's counter, in joules; it gives None where that cannot be read any more."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        # By its own name: numbers depend on which boards the process is shown.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except pynvml.NVMLError:
        return None

    def joules() -> float | None:
        try:
            return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
        except pynvml.NVMLError:
            return None

    return joules

"""The energy counters, on files as the kernel lays them out."""

import sys
from types import SimpleNamespace

import pytest
import torch

from openjepa.training.energy import EnergyMeter

CPU = torch.device("cpu")


def package(root, number, energy, around=1_000_000_000):
    zone = root / f"intel-rapl:{number}"
    zone.mkdir(exist_ok=True)
    (zone / "energy_uj").write_text(f"{energy}\n")
    (zone / "max_energy_range_uj").write_text(f"{around}\n")
    part = root / f"intel-rapl:{number}:0"  # the cores, which are in the package
    part.mkdir(exist_ok=True)
    (part / "energy_uj").write_text(f"{energy // 2}\n")


def test_packages_are_added_up_and_their_parts_are_not_counted_twice(tmp_path):
    package(tmp_path, 0, 5_000_000)
    package(tmp_path, 1, 1_000_000)
    meter = EnergyMeter(CPU, powercap=tmp_path)
    assert meter.joules() == 0
    package(tmp_path, 0, 8_000_000)
    package(tmp_path, 1, 1_500_000)
    assert meter.joules() == pytest.approx(3.5)
    assert meter.joules() == pytest.approx(3.5)
    assert meter.covers == "2 processor package(s)"


def test_a_counter_that_starts_again_is_followed(tmp_path):
    package(tmp_path, 0, 999_000_000)
    meter = EnergyMeter(CPU, powercap=tmp_path)
    package(tmp_path, 0, 2_000_000)
    assert meter.joules() == pytest.approx(3)
    package(tmp_path, 0, 4_000_000)
    assert meter.joules() == pytest.approx(5)


def test_the_platform_is_not_added_to_the_packages_that_are_in_it(tmp_path):
    for number, name in enumerate(("package-0", "psys")):
        package(tmp_path, number, 1_000_000)
        (tmp_path / f"intel-rapl:{number}/name").write_text(f"{name}\n")
    meter = EnergyMeter(CPU, powercap=tmp_path)
    for number in range(2):
        package(tmp_path, number, 3_000_000)
    assert meter.joules() == pytest.approx(2)
    assert meter.covers == "1 processor package(s)"


@pytest.mark.parametrize("name", ["energy_uj", "max_energy_range_uj"])
def test_a_counter_that_cannot_be_read_any_more_makes_the_sum_unknown(tmp_path, name):
    package(tmp_path, 0, 999_000_000)
    package(tmp_path, 1, 1_000_000)
    meter = EnergyMeter(CPU, powercap=tmp_path)
    package(tmp_path, 0, 2_000_000)
    (tmp_path / "intel-rapl:0" / name).unlink()
    assert meter.joules() is None
    package(tmp_path, 0, 3_000_000)
    assert meter.joules() is None, "what it counted meanwhile is not known"
    assert meter.covers == ""


def test_a_gpu_that_does_not_answer_any_more_makes_the_sum_unknown(monkeypatch, tmp_path):
    class NVMLError(Exception):
        pass

    def counter(handle):
        if lost:
            raise NVMLError("GPU is lost")
        return 4_000

    lost = []
    nvml = SimpleNamespace(
        NVMLError=NVMLError, nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda name: name,
        nvmlDeviceGetTotalEnergyConsumption=counter,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="0"))
    meter = EnergyMeter(torch.device("cuda"), powercap=tmp_path)
    assert (meter.joules(), meter.covers) == (0, "the GPU")
    lost.append(True)
    assert meter.joules() is None


def test_what_is_not_exposed_is_not_guessed(tmp_path):
    assert EnergyMeter(CPU, powercap=tmp_path / "absent").joules() is None
    (tmp_path / "intel-rapl:0").mkdir()  # without a counter that can be read
    meter = EnergyMeter(CPU, powercap=tmp_path)
    assert meter.joules() is None
    assert meter.covers == ""

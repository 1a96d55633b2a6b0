"""Memory, power, temperature and load of an NVIDIA GPU, through its management library."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from omnihuman_train.gpus import GPUS

# Words of a device's name; longer ones first.
_NAMES = {"H200": "h200", "H100": "h100", "B200": "b200", "A100": "a100", "L40S": "l40s", "RTX 4090": "rtx4090"}
# The PCIe card has the name of the others and a lower rate.
_H100_PCIE = 756e12


def peak_flops(name: str) -> float | None:
    """Nominal dense bf16 rate in flop/s of a device with this name; None for one that is not known."""
    if "H100 PCIe" in name:
        return _H100_PCIE
    known = next((key for word, key in _NAMES.items() if word in name), None)
    return None if known is None else GPUS[known].peak_flops


class GpuMeter:
    """State of one GPU; gives nothing, and costs nothing, where there is no NVIDIA driver or no ``nvidia-ml-py``.

    A value that a device does not have (a laptop's power limit) is left out.

    Args:
        device: Device of the run; one that is no NVIDIA GPU gives nothing.

    Attributes:
        peak_flops: Nominal bf16 rate in flop/s of a device that is known, else None.
    """

    def __init__(self, device: torch.device) -> None:
        self._nvml: Any = None
        self.peak_flops: float | None = None
        if device.type != "cuda":
            return
        try:
            # It ships no types.
            nvml: Any = import_module("pynvml")
        except ImportError:
            return
        try:
            nvml.nvmlInit()
            # Torch counts the GPUs that CUDA_VISIBLE_DEVICES leaves, the library all of the machine.
            self._handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
            name = nvml.nvmlDeviceGetName(self._handle)
        except nvml.NVMLError:
            return
        self._nvml = nvml
        self.peak_flops = peak_flops(name)

    def read(self) -> dict[str, float]:
        """``gpu/memory_gib``, ``gpu/power_watts``, ``gpu/temperature_celsius`` and ``gpu/utilisation`` (a share)."""
        if self._nvml is None:
            return {}
        nvml, handle = self._nvml, self._handle
        readings: dict[str, Callable[[], float]] = {
            "gpu/memory_gib": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used / 2**30,
            "gpu/power_watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "gpu/temperature_celsius": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "gpu/utilisation": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
        }
        values = {}
        for name, reading in readings.items():
            try:
                values[name] = float(reading())
            except nvml.NVMLError:
                continue
        return values

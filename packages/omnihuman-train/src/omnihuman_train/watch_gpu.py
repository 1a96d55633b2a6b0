"""Memory, power, temperature and load of an NVIDIA GPU, through its management library."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

# Nominal dense bf16 rates, flop/s, of the makers' data sheets, by a word of the device's name; longer names first.
PEAK_FLOPS = {
    "GH200": 989e12,
    "H200": 989e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


class GpuMeter:
    """State of one GPU; gives nothing, and costs nothing, where there is no NVIDIA driver or no ``nvidia-ml-py``.

    A value that a device does not have (a laptop's power limit, a slice of a device) is left out.

    Args:
        index: Number of the GPU among those of the machine.

    Attributes:
        peak_flops: Nominal bf16 rate in flop/s of a device that is known, else None.
    """

    def __init__(self, index: int = 0) -> None:
        self._nvml: Any = None
        self.peak_flops: float | None = None
        try:
            # It ships no types.
            nvml: Any = import_module("pynvml")
        except ImportError:
            return
        try:
            nvml.nvmlInit()
            self._handle = nvml.nvmlDeviceGetHandleByIndex(index)
            name = nvml.nvmlDeviceGetName(self._handle)
        except nvml.NVMLError:
            return
        self._nvml = nvml
        # H100 PCIe has a lower rate than the others of its name.
        self.peak_flops = 756e12 if "H100 PCIe" in name else next((v for k, v in PEAK_FLOPS.items() if k in name), None)

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

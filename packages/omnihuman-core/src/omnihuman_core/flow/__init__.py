"""Flow matching as plain functions: path, noise levels, samplers, guidance."""

from omnihuman_core.flow.guidance import Guidance, guided
from omnihuman_core.flow.path import interpolate, noise_from_velocity, velocity_target, x0_from_velocity
from omnihuman_core.flow.samplers import SAMPLERS, Sampler, sample_dpmpp_2m, sample_euler, sample_heun
from omnihuman_core.flow.sigmas import logit_normal, resolution_shift, schedule, shift, uniform

__all__ = [
    "SAMPLERS",
    "Guidance",
    "Sampler",
    "guided",
    "interpolate",
    "logit_normal",
    "noise_from_velocity",
    "resolution_shift",
    "sample_dpmpp_2m",
    "sample_euler",
    "sample_heun",
    "schedule",
    "shift",
    "uniform",
    "velocity_target",
    "x0_from_velocity",
]

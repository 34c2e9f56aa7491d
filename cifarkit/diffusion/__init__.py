"""Images out of noise: schedules, samplers, and the trained network made ready to sample."""

from cifarkit.diffusion.denoiser import as_denoiser
from cifarkit.diffusion.samplers import Denoiser, draw_noise, sample_ddim, sample_ddpm, sample_dpm_solver
from cifarkit.diffusion.schedule import NoiseSchedule

__all__ = [
    "Denoiser",
    "NoiseSchedule",
    "as_denoiser",
    "draw_noise",
    "sample_ddim",
    "sample_ddpm",
    "sample_dpm_solver",
]

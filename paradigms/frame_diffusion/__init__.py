"""Frame diffusion: one network that denoises latent frames, each at a noise level of its own."""

from arvid.paradigms.frame_diffusion.paradigm import FrameDiffusion

__all__ = ["FrameDiffusion"]

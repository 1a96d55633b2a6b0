"""One denoising run: noise levels, sampler and guidance of a request, on the model's defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from omnihuman_core.contracts import Backbone, Conditioning
from omnihuman_core.flow import SAMPLERS, Guidance, guided
from omnihuman_core.flow import schedule as sigma_schedule
from omnihuman_core.model_dir import ModelComponents
from omnihuman_infer.request import GenerateRequest, RequestError


def check_sampler(name: str) -> str:
    """The name, where it is that of a sampler.

    Raises:
        RequestError: it is none.
    """
    if name not in SAMPLERS:
        raise RequestError(f"sampler: must be one of {', '.join(sorted(SAMPLERS))}, got {name!r}")
    return name


def check_guidance(scale: float, schedule: str, end_scale: float) -> Guidance:
    """The guidance of these settings.

    Raises:
        RequestError: an unknown schedule, or numbers that do not go together.
    """
    try:
        return Guidance(scale=scale, schedule=schedule, end_scale=end_scale)  # type: ignore[arg-type]
    except ValueError as error:
        raise RequestError(f"guidance_schedule: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """Turns noise into final latents.

    Attributes:
        backbone: Predicts velocities.
        guidance: How positive and negative predictions are combined.
        sampler: Name in :data:`omnihuman_core.flow.SAMPLERS`.
        num_steps: Steps of the sampler.
        sigma_shift: Shift of the noise levels.
    """

    backbone: Backbone
    guidance: Guidance
    sampler: str
    num_steps: int
    sigma_shift: float

    @classmethod
    def from_request(cls, request: GenerateRequest, components: ModelComponents) -> Denoiser:
        """The request's settings, and the model's where it leaves them open.

        Raises:
            RequestError: an unknown sampler, or settings that do not go together.
        """
        settings = components.generation
        sampler = check_sampler(request.sampler or settings.sampler)
        scale = settings.guidance_scale if request.guidance_scale is None else request.guidance_scale
        # A schedule falls: it never ends above the scale that the user asked for.
        end_scale = min(settings.guidance_end_scale, scale)
        return cls(
            backbone=components.backbone,
            guidance=check_guidance(scale, request.guidance_schedule or settings.guidance_schedule, end_scale),
            sampler=sampler,
            num_steps=request.num_steps or settings.num_steps,
            sigma_shift=settings.sigma_shift,
        )

    def restricted_to(self, region: Tensor) -> Denoiser:
        """The same, guiding only where ``region (1, 1, 1, h, w)`` is above 0."""
        return replace(self, guidance=replace(self.guidance, region=region))

    def __call__(
        self,
        noise: Tensor,
        positive: Conditioning,
        negative: Conditioning,
        *,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Final latents ``(1, C, t, h, w)`` in the dtype of ``noise``.

        Args:
            noise: ``(1, C, t, h, w)``.
            positive: Conditions.
            negative: Conditions to guide away from.
            on_step: Called after each step with the number of steps done and of all steps.
        """

        def predict(latents: Tensor, sigma: Tensor) -> Tensor:
            return guided(self.backbone, latents, sigma, positive, negative, self.guidance)

        def count(step: int, latents: Tensor) -> None:
            if on_step is not None:
                on_step(step + 1, self.num_steps)

        sigmas = sigma_schedule(self.num_steps, shift_factor=self.sigma_shift, device=noise.device)
        return SAMPLERS[self.sampler](predict, noise, sigmas, callback=count)

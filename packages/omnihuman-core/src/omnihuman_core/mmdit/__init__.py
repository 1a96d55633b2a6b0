"""The multi-modal diffusion transformer: the project's backbone."""

from omnihuman_core.mmdit.config import MMDiTConfig
from omnihuman_core.mmdit.model import MMDiT
from omnihuman_core.mmdit.presets import hunyuan_video, small, tiny

__all__ = ["MMDiT", "MMDiTConfig", "hunyuan_video", "small", "tiny"]

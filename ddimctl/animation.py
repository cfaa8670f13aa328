"""What `ddimctl.images.animation` was called before; kept for those who import it by this name."""

from ddimctl.images.animation import check_frames, check_target, count_frames, save_frames

__all__ = ["check_frames", "check_target", "count_frames", "save_frames"]

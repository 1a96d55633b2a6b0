"""Pose: keypoint files, skeleton maps, and the trainable guider."""

"""Pictures, sound and video files: everything that crosses the border between files and arrays."""

"""Voice: media files, features, alignment to video frames, and the trainable encoder."""

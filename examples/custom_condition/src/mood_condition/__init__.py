"""Moods as a text condition."""

from mood_condition.moods import MoodEncoder, MoodEncoderConfig, MoodExtractor, MoodExtractorConfig

__all__ = ["MoodEncoder", "MoodEncoderConfig", "MoodExtractor", "MoodExtractorConfig"]

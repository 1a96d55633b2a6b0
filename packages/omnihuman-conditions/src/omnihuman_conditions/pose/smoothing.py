"""Takes the jitter of a pose estimator out of a recorded motion, without delaying it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from omnihuman_conditions.pose.keypoints import PoseSequence


def smooth(sequence: PoseSequence, *, window_seconds: float, order: int = 2) -> PoseSequence:
    """Savitzky-Golay filter of every point: a polynomial fitted to a window round each frame.

    The filter looks both ways, so that a gesture keeps its time, and keeps polynomials of its order as they are, so
    that a peak keeps its height. Only frames in which a point was seen count: a gap ends one run and starts another,
    and runs too short to fit are left alone. Scores stay.

    Args:
        sequence: The motion.
        window_seconds: Length of the window; 0 leaves the motion alone.
        order: Order of the polynomial.

    Raises:
        ValueError: a negative window or order, or scipy is not installed.
    """
    if window_seconds < 0 or order < 0:
        raise ValueError(f"smoothing needs window_seconds >= 0 and order >= 0, got {window_seconds} and {order}")
    # The nearest odd number of frames.
    window = 2 * round((window_seconds * sequence.fps - 1) / 2) + 1
    if window <= order + 1:
        return sequence
    try:
        from scipy.signal import savgol_filter
    except ImportError as error:
        raise ValueError("smoothing needs scipy: pip install 'omnihuman-conditions[pose]'") from error
    values = sequence.keypoints.double().numpy().copy()
    for point in range(values.shape[1]):
        for start, stop in _runs(values[:, point, 2] > 0):
            length = stop - start
            fitted = min(window, length if length % 2 else length - 1)
            if fitted > order:
                values[start:stop, point, :2] = savgol_filter(values[start:stop, point, :2], fitted, order, axis=0)
    return replace(sequence, keypoints=torch.from_numpy(values).float())


def _runs(seen: np.ndarray) -> list[tuple[int, int]]:
    """Half-open ranges of frames in which a point is seen."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], seen.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))

"""Arrays of numbers from an .npz that may come from strangers."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np


def read_npz(path: Path, names: Sequence[str], *, max_bytes: int) -> Mapping[str, np.ndarray]:
    """Those of ``names`` that the file has.

    Args:
        path: The file.
        names: Arrays to read; others are left alone.
        max_bytes: Largest size of the whole file, unpacked.

    Raises:
        ValueError: a damaged file, one that unpacks to more, or an array that is not of numbers or whose header claims
            more than the file holds. One line that names the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            if sum(member.file_size for member in members.values()) <= max_bytes:
                return {name: _read_npy(archive, members[name]) for name in names if name in members}
    # What the parsers of zip, npy and the literal in its header raise on damaged bytes is no short list.
    except Exception as error:
        raise ValueError(f"pose file is not a readable .npz (damaged, truncated or pickled): {path}") from error
    raise ValueError(f"pose file unpacks to more than {max_bytes // 1024**2} MB: {path}")


def _read_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in readers:
            raise ValueError(f"npy version {version}")
        shape, _, dtype = readers[version](file)
        # numpy allocates what the header claims before it reads: 64 bytes could ask for a petabyte.
        if dtype.kind not in "biuf" or math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(f"npy header claims {shape} of {dtype}")
    with archive.open(member) as file:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        return array

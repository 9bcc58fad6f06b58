"""``usreg.register``: the registration of a pair as a Python function."""

from __future__ import annotations

from .pair import Registration, Volume, register_pair
from .stages import load_stages


def register(fixed: Volume, moving: Volume) -> Registration:
    """Register the moving image to the fixed one with the packaged default.

    Args:
        fixed: the image whose grid the results have.
        moving: the image that is warped.

    Raises:
        DataError: see :func:`usreg.registration.pair.register_pair`.
    """
    config, stages = load_stages()
    return register_pair(fixed, moving, stages, quantiles=config.quantiles)

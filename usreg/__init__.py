"""USReg: training of 3-D image registration networks, with fused losses from :mod:`usreg_kernels`.

``python -m usreg.train --config FILE`` trains; :mod:`usreg.losses`, :mod:`usreg.models`, :mod:`usreg.datasets` and
:mod:`usreg.metrics` hold the registries that the config's names refer to.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("usreg")
except PackageNotFoundError:  # used from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]

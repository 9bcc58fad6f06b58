"""Whether backends of local normalised cross-correlation save what backward can compute again.

Environment variables:

``USREG_LNCC_RECOMPUTE``
    ``1``: never save gradients, or the maps that they are made from: they take as much memory as the inputs, or more.
    A step takes about 1.6 times as long. Read at import, so that forward, backward and compiled graphs agree on it.
"""

import os

RECOMPUTE = os.environ.get("USREG_LNCC_RECOMPUTE") == "1"
"""Whether they save nothing."""

"""Lets tests import ``bench``, from behind everything that is installed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

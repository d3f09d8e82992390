"""`python -m` puts the current folder before everything else, but nothing is imported from there: see `checkpoints/start.py`."""

import os
import sys

if sys.argv[:1] == ["-m"]:  # so Python says while it looks for the module that it is to run
    here, root = os.path.realpath(os.curdir), os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    sys.path[:] = [entry for entry in sys.path if here == root or os.path.realpath(entry) != here]
    os.environ["PYTHONSAFEPATH"] = "1"  # for what this process starts
    from checkpoints.start import wait_shortly

    wait_shortly()  # torch is not imported yet
from checkpoints import elsewhere
from checkpoints.version import __version__ as __version__

elsewhere.prepare()

from probes import surface
from probes.surface import compare as compare
from probes.surface import embed as embed
from probes.surface import load as load

surface.keep_functions(__name__)

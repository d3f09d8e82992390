"""matplotlib, imported nowhere else: it must not read a `matplotlibrc` of the current folder.

Such a file comes before the user's own. Older releases evaluate a part of it as Python, and it may have all text set by TeX.
"""

from checkpoints.elsewhere import elsewhere

with elsewhere():
    import matplotlib as mpl
    from matplotlib import font_manager
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.ft2font import FT2Font
    from matplotlib.patches import ConnectionPatch

__all__ = ["Axes", "ConnectionPatch", "FT2Font", "Figure", "FigureCanvasAgg", "PowerNorm", "font_manager", "mpl"]

"""Pictures of reports, each a self-contained HTML page that needs no network, or a PNG.

Pure: report in, page out. Files are written by the callers.
"""

from safemerge.plots.merge import layer_plot_html

__all__ = ["layer_plot_html"]

"""Every picture: training curves, learning-rate sweeps, image grids, confusion matrices, mistakes, attention maps.

Each function returns a ``matplotlib.figure.Figure`` that belongs to no window and no global state, so it works on a
server, in a thread and in the middle of a run; given a path that ends in .png it also writes that file, whole or not
at all, and makes its folder. Matplotlib is imported when something is drawn.
"""

from cifarkit.plots.attention import attention_maps
from cifarkit.plots.confusion import confusion_matrix
from cifarkit.plots.copies import nearest_pairs
from cifarkit.plots.curves import lr_sweep, training_curves
from cifarkit.plots.explanations import explanations
from cifarkit.plots.images import confident_mistakes, image_grid, most_confident_mistakes, to_pixels

__all__ = [
    "attention_maps",
    "confident_mistakes",
    "confusion_matrix",
    "explanations",
    "image_grid",
    "lr_sweep",
    "most_confident_mistakes",
    "nearest_pairs",
    "to_pixels",
    "training_curves",
]

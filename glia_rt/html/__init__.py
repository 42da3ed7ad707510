"""HTML pages that need nothing beside the file: a frame, a style, plots in the page's colours, thumbnails.

In: a template that extends `frame.html` and may take from `parts.html`, and what fills it. Out: a file.

Other folders use: the module kit.
"""

import os
from contextlib import suppress

from platformdirs import user_cache_path

# Before Matplotlib is imported: its list of fonts goes into glia-rt's cache, and not into folders of its own at home.
with suppress(OSError, RuntimeError):  # RuntimeError: there is no HOME, and the user has no entry that names one
    os.environ.setdefault("MPLCONFIGDIR", str(user_cache_path("glia-rt", appauthor=False) / "matplotlib"))

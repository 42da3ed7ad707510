"""HTML pages that need nothing beside the file: a frame, a style, plots in the page's colours, thumbnails.

In: a template that extends `frame.html` and may take from `parts.html`, and what fills it. Out: a file.

Other folders use: the module kit.
"""

"""The demo: the starter's scores of photographs that come with two packages, and then the whole chain once.

In: a folder to write to. Out: pictures, scores, a fine-tuned checkpoint, its bundle, and a page that reports on all of
them. `data` distorts the photographs, `score` scores them, `tune` fine-tunes the starter and takes the result through
the chain, `page` shows what came out, and `run` calls them in turn.

Other folders use: the module run.
"""

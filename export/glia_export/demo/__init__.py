"""The demo: the whole chain once, on photographs that come with two packages.

In: a folder to write to, and a number of minutes. Out: a dataset, a run, a checkpoint, a bundle, scores, and a page
that reports on all of them. `data` distorts and labels the photographs, `page` shows the result, and `run` runs the
chain between them.

Other folders use: the module run.
"""

"""The whole chain once, on photographs that come with two packages.

In: a folder to write, and minutes. Out: a data set, a run, a checkpoint, a bundle, scores, and a page about all of it.
`data` distorts and labels the photographs, `page` shows the result, `run` goes from one to the other.

Other folders use: the module run.
"""

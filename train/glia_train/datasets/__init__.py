"""Labelled pictures: every dataset becomes one table, and is split into parts.

In: labels as they were downloaded or written. Out: rows of `LabelledPicture`, whose scores rise with quality, and a
`Split` of them. `base` is the table, `csv` a user's own file, `splits` cuts it.

Other folders use: COLUMNS, LabelledPicture of base; read_labels of csv; Split, split_pictures of splits.
"""

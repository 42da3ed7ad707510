"""Datasets of labelled pictures: every dataset is read into one table and split into parts.

In: labels, as they were downloaded or written. Out: rows of `LabelledPicture`, and a `Split` of them. Scores rise with
quality. `base` defines the table, `csv` reads a user's own file, and `splits` splits the table.

Other folders use: COLUMNS, LabelledPicture of base; read_labels of csv; Split, split_pictures of splits.
"""

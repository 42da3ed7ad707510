"""Datasets of labelled pictures: every dataset is read into one table and split into parts.

In: labels, as they were downloaded or written. Out: rows of `LabelledPicture`, and a `Split` of them. Scores rise with
quality. `base` defines the table. `table` lists the published datasets, each in a file of its own, and reads any. `csv`
and `parquet` read a user's own labels, and `tables` the lines of a label file. `splits` splits the table, `check` says
whether all is there, and `unpack` writes pictures out of archives.

Other folders use: COLUMNS, Dataset, LabelledPicture, Part, PARTS, require_pictures, require_scores of base; DATASETS,
read_dataset of table; Columns, read_labels of csv; Split, split_dataset of splits; check_dataset of check; unpack of
unpack; COLUMNS, IMAGES, LABELS, RECORD of kadid10k.
"""

"""What to score: files, folders, patterns, lists, tar files and Parquet, as one lazy stream in a fixed order.

In: paths, as a user names them. Out: pictures, still encoded, each with its name and its position. `sources` is the
whole listing. `pieces` are the parts of it that open on their own; `tar` and `parquet` are two kinds of them. `folders`
and `lists` find names. `missing` tells a missing file from a disk that has gone.

Other folders use: Sources, Position, Summary, Tally, START, DEFAULT_COLUMN of sources; Picture of pieces; find_images
of folders; Trail, FOLDERS of missing; read_cell, holds_bytes,
holds_pictures, open_arrow, first_line of parquet.
"""

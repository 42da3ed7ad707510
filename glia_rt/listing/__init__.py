"""What to score: files, folders, patterns, lists, tar files and Parquet, as one lazy stream in a fixed order.

In: paths, as a user names them. Out: pictures, still encoded, each with its name and its position. `sources` is the
whole listing, and `frozen` is one that is kept in a file. `pieces` are the parts of it that open on their own; `tar`
and `parquet` are two kinds of them. `folders` and `lists` find names. `missing` tells a missing file from a disk that
has gone.

Other folders use: Sources, DEFAULT_COLUMN of sources; FrozenListing, Summary, freeze, is_frozen, ENDING of frozen;
Picture, Piece, Position, Refused, START, read_piece of pieces; find_images of folders; Trail, FOLDERS of missing;
read_cell, holds_bytes, holds_pictures, open_arrow, first_line of parquet.
"""

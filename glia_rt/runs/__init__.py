"""A listing scored into a file: resumable, in order, and whole or not there.

In: a scorer and a listing. Out: OUTPUT, OUTPUT.meta.json and, if asked for, a page. `run` is one run; `journal` keeps
its rows for a crash in OUTPUT.parts/; `outputs` are the formats of files; `page` shows the scores; `ray_data` does the
same on a Ray cluster.

Other folders use: the module run, and Outcome, Progress, score_to_file of it; format_score,
json_line, listing_path, metadata_path of outputs.
"""

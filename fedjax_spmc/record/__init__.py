"""The run folder: which files are written, when, and how an interrupted run goes on.

folder.py the files of a run folder; lines.py a line of `metrics.jsonl` and the summary; checkpoint.py the whole state;
resume.py where a run goes on; recorder.py keeps all of them up to date; result.py reads a run back.
"""

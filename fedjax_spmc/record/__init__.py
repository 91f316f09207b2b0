"""The run folder and the other files of a run: what is written, when, and how a run goes on.

folder.py the files of a run folder; lines.py a line of `metrics.jsonl` and the summary; checkpoint.py the whole state;
resume.py where a run goes on; recorder.py keeps all of them up to date; result.py reads a run back.
"""

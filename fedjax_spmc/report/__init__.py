"""From run folders to a page and the papers' tables.

    python -m fedjax_spmc.report RUN_OR_SWEEP ... --out=report/

read.py finds the runs, settings.py groups them over seeds (estimates.py has the intervals), tables.py and published.py
lay the papers' tables out, overview.py and durable.py the other tables, figures.py, images.py and gradcam.py draw,
page.py writes `index.html` and the tables as CSV, Markdown and LaTeX.
"""

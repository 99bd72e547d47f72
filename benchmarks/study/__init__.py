"""The study of bagging and merging: what is trained, merged, measured and told.

setting     what a study is run with; the rows and dev tasks of a smaller scale
lab         trains, merges, searches and measures, each once
table       what a table is: models side by side, or each where it was not taught
tables      which models every table has
compare     means over seeds, spreads, and how sure a lead is
page        docs/study.md
"""

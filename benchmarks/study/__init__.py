"""The study of bagging and merging: what is trained, merged, measured and told.

setting     what a study is run with; the rows and dev tasks of a smaller scale
lab         trains, merges, searches and measures, each once
tables      which models every table has
compare     means over seeds, spreads, and how sure a lead is
page        docs/study.md
"""

"""The companion trainer: members trained on parts of the data, ready to be merged."""

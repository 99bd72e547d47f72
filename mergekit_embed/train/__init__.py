"""The companion trainer: members to merge, trained from one base on parts of the data."""

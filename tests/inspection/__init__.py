"""Tests of boom-inspect."""

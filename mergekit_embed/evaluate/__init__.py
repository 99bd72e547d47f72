"""Benchmarks and local tasks: comparing models side by side."""

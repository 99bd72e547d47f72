"""Recipes: the YAML that says what to merge and how."""

from .load import load, load_all
from .model import Member, Recipe

__all__ = ["Member", "Recipe", "load", "load_all"]

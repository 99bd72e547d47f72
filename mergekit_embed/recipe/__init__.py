"""Recipes: the YAML that says what to merge and how."""

from .load import load
from .model import Member, Recipe

__all__ = ["Member", "Recipe", "load"]

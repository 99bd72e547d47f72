"""What is in the members of a merge: lengths, angles, conflicts; measured before merging."""

from . import text
from .facts import GROUPINGS, By, Facts, Summary, TensorFacts, as_dict
from .look import SAMPLE, inspect
from .page import sections, write_page
from .remarks import remarks
from .subject import Subject, models, planned, recipe

__all__ = [
    "GROUPINGS",
    "SAMPLE",
    "By",
    "Facts",
    "Subject",
    "Summary",
    "TensorFacts",
    "as_dict",
    "inspect",
    "models",
    "planned",
    "recipe",
    "remarks",
    "sections",
    "text",
    "write_page",
]

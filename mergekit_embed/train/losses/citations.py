"""BibTeX of the papers that our losses come from, for model cards."""

from __future__ import annotations

from typing import Literal

Paper = Literal["info_nce", "codiemb", "qwen3", "embeddinggemma", "kalm"]


def _entry(key: str, title: str, year: int, arxiv: str) -> str:
    return (
        f"@misc{{{key},\n    title={{{title}}},\n    year={{{year}}},\n"
        f"    eprint={{{arxiv}}},\n    archivePrefix={{arXiv}}\n}}"
    )


BIBTEX: dict[Paper, str] = {
    "info_nce": _entry(
        "oord2018representation",
        "Representation Learning with Contrastive Predictive Coding",
        2018,
        "1807.03748",
    ),
    "codiemb": _entry("codiemb", "CoDiEmb", 2025, "2508.11442"),
    "qwen3": _entry(
        "qwen3embedding",
        "Qwen3 Embedding: Advancing Text Embedding and Reranking Through Foundation Models",
        2025,
        "2506.05176",
    ),
    "embeddinggemma": _entry(
        "embeddinggemma",
        "EmbeddingGemma: Powerful and Lightweight Text Representations",
        2025,
        "2509.20354",
    ),
    "kalm": _entry(
        "kalmembeddingv2",
        "KaLM-Embedding-V2: Superior Training Techniques and Data Inspire A Versatile "
        "Embedding Model",
        2025,
        "2506.20923",
    ),
}

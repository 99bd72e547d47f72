"""Publishing a model: its lineage, its card, the Hub."""

"""What a model was made from: merge_lineage.json, as every merge writes it and readers find it."""

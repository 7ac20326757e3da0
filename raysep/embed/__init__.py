"""From images and a model to one Parquet row per image with one column per layer."""

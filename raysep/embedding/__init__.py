"""Embeds images with a model: Parquet files with one row per image and one column per layer."""

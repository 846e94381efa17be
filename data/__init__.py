"""Data sets: reading, caching, splits, batched augmentation, the synthetic set, FES."""

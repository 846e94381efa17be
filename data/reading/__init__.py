"""Reading data sets: folders, archives, tables, images, and the cache of what was read."""

"""A folder that runs bundles on a device without pip: Python, the packages, libmegrez and a bundle. Entry: write.py."""

"""ResNets, masks on faces, training and evaluation: what is built from :mod:`nn`."""

__version__ = "0.2.0"

"""ResNets, masks on faces, training and evaluation: what is built from :mod:`nn`."""

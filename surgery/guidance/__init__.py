"""Guidance beyond classifier-free: several branches of one model, with a patch in some of them."""

"""PyTorch twin of the ViT and Swin ECENet networks, for measuring only; the product never imports it.

Written as a PyTorch user would write a fast network: fused attention, fused norms and activations, channels-last maps.
Modules carry the names of ours, so that weights move over by name (`weights.py`). Source: specs of the networks
(ECENet spec sections 2 to 7; Swin Transformer, ICCV 2021), checked against ours in tests/test_benchmarks.py.
"""

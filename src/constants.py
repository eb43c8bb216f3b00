"""Numbers that several parts must agree on."""

IGNORE = 255  # label of pixels that take part in nothing
MEAN_PIXEL = (124, 116, 104)  # R, G, B: the ImageNet means, rounded; near 0 once the network has normalised it

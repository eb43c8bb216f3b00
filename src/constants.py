"""Numbers that several parts must agree on."""

import errno

IGNORE = 255  # label of pixels that take part in nothing
MEAN_PIXEL = (124, 116, 104)  # R, G, B: the ImageNet means, rounded; near 0 once the network has normalised it
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # of an OSError: no room on the disk, or none left of the user's share of it

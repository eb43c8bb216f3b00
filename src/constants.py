"""Numbers that several parts must agree on."""

import errno

IGNORE = 255  # label of pixels that take part in nothing
MEAN_PIXEL = (124, 116, 104)  # R, G, B: the ImageNet means, rounded; near 0 once the network has normalised it
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # of an OSError: no room on the disk, or none left of the user's share of it

# Exit codes, besides 0 for success and Python's own 1 for an error that nothing below is made for.
MISUSE = 2  # wrong usage, configuration or data: the same command fails again
DIVERGED = 3  # the numbers of a training run are no longer finite: the same command fails again
RESUME = 85  # stopped by a signal and saved: the same command goes on
INTERRUPTED = 130  # left at once

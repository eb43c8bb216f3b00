"""Finds what is wrong with data, a configuration or a machine before a training does: tools/doctor.py, train.py.

A check is a function that returns findings; one file each. Nothing here changes what it looks at.
"""
